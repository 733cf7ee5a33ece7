import { Ranker, WorkerRanker } from "ranklet";

// What a test calls from outside.
Object.assign(window, { Ranker, WorkerRanker });
