/** The other side of `WorkerRanker`: a ranker that lives in a worker. */

import type { LoadOptions } from "./bundle.js";
import { Ranker } from "./ranker.js";

export type Call =
  | { number: number; method: "load"; arguments: [string, LoadOptions] }
  | { number: number; method: "rank" | "find" | "values"; arguments: unknown[] };
export type Reply = { number: number; value?: unknown; error?: { name: string; message: string } };

let ranker: Ranker | undefined;

self.onmessage = async ({ data }: MessageEvent<Call>) => {
  const reply: Reply = { number: data.number };
  try {
    if (data.method === "load") {
      ranker = await Ranker.load(...data.arguments);
    } else {
      const method = ranker![data.method] as (...values: unknown[]) => Promise<unknown>;
      reply.value = await method.apply(ranker, data.arguments);
    }
  } catch (error) {
    const { name, message } = error as Error;
    reply.error = { name, message };
  }
  self.postMessage(reply);
};
