/** What next, after these items? Ranks with a bundle of ranklet, in a browser or in Node. */

export { BundleError, type LoadOptions } from "./bundle.js";
export { type Id, InputError, type Range, type Value, type Where } from "./catalogue.js";
export { type Explanation, type Ranking, Ranker, type RankOptions } from "./ranker.js";
export { WorkerRanker } from "./client.js";
