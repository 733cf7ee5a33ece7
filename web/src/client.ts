/** A ranker in a worker, so that a page never waits for it. */

import { BundleError, type LoadOptions } from "./bundle.js";
import { type Id, InputError } from "./catalogue.js";
import type { Ranking, RankOptions } from "./ranker.js";
import type { Reply } from "./worker.js";

const ERRORS: Record<string, new (message: string) => Error> = { BundleError, InputError };

export class WorkerRanker {
  private readonly waiting = new Map<number, (reply: Reply) => void>();
  private calls = 0;

  private constructor(private readonly worker: Worker) {
    worker.onmessage = ({ data }: MessageEvent<Reply>) => {
      this.waiting.get(data.number)?.(data);
      this.waiting.delete(data.number);
    };
    worker.onerror = ({ message }) => {
      const error = { name: "Error", message: `the worker has failed: ${message}` };
      for (const [number, resolve] of this.waiting) resolve({ number, error });
      this.waiting.clear();
    };
  }

  /** Start a worker that loads a bundle, see `Ranker.load`. */
  static async load(address: string | URL, options: LoadOptions = {}): Promise<WorkerRanker> {
    const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    const ranker = new WorkerRanker(worker);
    try {
      await ranker.call("load", new URL(address, location.href).href, options);
    } catch (error) {
      worker.terminate();
      throw error;
    }
    return ranker;
  }

  /** Rank items for a history, see `Ranker.rank`. */
  rank(history: readonly Id[], options: RankOptions = {}): Promise<Ranking> {
    return this.call("rank", history, options) as Promise<Ranking>;
  }

  /** Return the items whose titles hold all words of a text, see `Ranker.find`. */
  find(text: string, most = 10): Promise<{ item: Id; title: string }[]> {
    return this.call("find", text, most) as Promise<{ item: Id; title: string }[]>;
  }

  /** Return the categories of an attribute, see `Ranker.values`. */
  values(name: string): Promise<string[]> {
    return this.call("values", name) as Promise<string[]>;
  }

  /** End the worker. */
  close(): void {
    this.worker.terminate();
  }

  private async call(method: string, ...values: unknown[]): Promise<unknown> {
    const number = this.calls++;
    const reply = new Promise<Reply>((resolve) => this.waiting.set(number, resolve));
    this.worker.postMessage({ number, method, arguments: values });
    const { value, error } = await reply;
    if (error) throw new (ERRORS[error.name] ?? Error)(error.message);
    return value;
  }
}
