/** Rankings: histories in, items out. Nothing leaves the page. */

import { type Runtime, start } from "#platform";
import type { InferenceSession, Tensor } from "onnxruntime-web/wasm";

import { Bundle, BundleError, type LoadOptions } from "./bundle.js";
import { Catalogue, type Id, InputError, type Where } from "./catalogue.js";

export interface RankOptions {
  /** The number of items, by default 10; fewer if fewer are left. */
  k?: number;
  /** Never return an item of the history; by default as the bundle says. */
  excludeSeen?: boolean;
  /** Never return these items. */
  exclude?: readonly Id[];
  /** Rank only these items; ids that the catalogue lacks are dropped. */
  candidates?: readonly Id[];
  /** Rank only the items that meet these conditions on their attributes. */
  where?: Where;
  /** Say what each of the latest events did to the scores; a number says of how many events. */
  explain?: boolean | number;
}

/** Events of the history, and how much the score of each item falls without them. */
export interface Explanation {
  events: Id[];
  titles: string[];
  /** For each item of the ranking, the drop by each event. */
  drops: number[][];
}

export interface Ranking {
  items: Id[];
  titles: string[];
  scores: number[];
  /** The number of events that the catalogue lacks. */
  unknown: number;
  /** Whether no event was known, so that the items are the most popular ones. */
  cold: boolean;
  explanation?: Explanation;
  /** The digest of the bundle. */
  bundle: string;
}

interface Found {
  items: number[];
  scores: number[];
  /** The user vector; none for a cold user. */
  user?: ArrayLike<number | bigint>;
}

const NEVER = -1e37; // items of lower scores are never ranked
const EXPLAINED = 10; // events
const DEEPER = 8; // times as many items are looked at where a filter needs more

export class Ranker {
  private rows: Float32Array | undefined;

  private constructor(
    private readonly bundle: Bundle,
    readonly catalogue: Catalogue,
    private readonly runtime: Runtime,
    private readonly session: InferenceSession,
  ) {}

  /**
   * Load a bundle from the address of its folder; in Node it may be a path.
   *
   * @throws BundleError if a file is missing or not what the manifest says.
   */
  static async load(address: string | URL, options: LoadOptions = {}): Promise<Ranker> {
    const runtime = start(options.threads ?? 1);
    const bundle = await Bundle.open(address, options);
    const { model } = bundle.manifest.programs;
    const weights = bundle.manifest.table.file;
    const [catalogue, graph, data] = await Promise.all([
      Catalogue.read(bundle),
      bundle.bytes(model.file),
      bundle.bytes(weights),
    ]);
    const session = await runtime.InferenceSession.create(graph, {
      externalData: [{ path: weights, data }],
      intraOpNumThreads: options.threads ?? 1,
    });
    return new Ranker(bundle, catalogue, runtime, session);
  }

  /** Return the items whose titles hold all words of a text, the most popular ones first. */
  async find(text: string, most = 10): Promise<{ item: Id; title: string }[]> {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const found: { item: Id; title: string }[] = [];
    for (const item of this.catalogue.popular()) {
      if (found.length >= most) break;
      const title = this.catalogue.title(item);
      const low = title.toLowerCase();
      if (words.every((word) => low.includes(word))) {
        found.push({ item: this.catalogue.id(item), title });
      }
    }
    return found;
  }

  /** Return the categories of an attribute, for `where`. */
  values(name: string): Promise<string[]> {
    return this.catalogue.values(name);
  }

  /**
   * Rank items for a history, oldest event first.
   *
   * @throws InputError if a value can't be used.
   */
  async rank(history: readonly Id[], options: RankOptions = {}): Promise<Ranking> {
    const { catalogue } = this;
    const k = whole(options.k ?? 10, "k");
    const events = catalogue.index(history, "history");
    const known = events.filter((item) => item > 0);
    const counted = known.filter((item) => !catalogue.silent.has(item));
    const latest = counted.slice(-this.bundle.manifest.max_length);
    const dropped = new Set(catalogue.index(options.exclude ?? [], "exclude"));
    if (options.excludeSeen ?? this.bundle.manifest.exclude_seen) {
      for (const item of known) dropped.add(item);
    }
    const chosen = options.candidates && new Set(catalogue.index(options.candidates, "candidates"));
    const meets = options.where && (await catalogue.where(options.where));
    const allows = (item: number) =>
      !dropped.has(item) && (chosen?.has(item) ?? true) && (meets ? meets[item] === 1 : true);
    const isFiltered = chosen !== undefined || meets !== undefined;
    const cold = latest.length === 0;
    const best = cold
      ? this.popular(k, allows)
      : await this.best(latest, k, isFiltered ? DEEPER * k : k + dropped.size, allows);
    const { items, scores, user } = best;
    const asked = options.explain === true ? EXPLAINED : Number(options.explain ?? 0);
    return {
      ...this.named(items),
      scores,
      unknown: events.length - known.length,
      cold,
      ...(asked && user ? { explanation: await this.explain(latest, user, items, asked) } : {}),
      bundle: this.bundle.manifest.digest,
    };
  }

  /** Free the memory of the model. */
  async close(): Promise<void> {
    await this.session.release();
  }

  private named(items: number[]): { items: Id[]; titles: string[] } {
    const { catalogue } = this;
    return {
      items: items.map((item) => catalogue.id(item)),
      titles: items.map((item) => catalogue.title(item)),
    };
  }

  private popular(k: number, allows: (item: number) => boolean): Found {
    const items: number[] = [];
    for (const item of this.catalogue.popular()) {
      if (items.length >= k) break;
      if (allows(item)) items.push(item);
    }
    return { items, scores: items.map((item) => this.catalogue.share(item)) };
  }

  /** Return the k best items that a filter allows, from the `depth` best of all, or from more. */
  private async best(
    events: number[],
    k: number,
    depth: number,
    allows: (item: number) => boolean,
  ): Promise<Found> {
    const most = this.bundle.manifest.items;
    const looked = Math.min(depth, most);
    const { items, scores, user } = await this.run([events], looked);
    const found: Found = { items: [], scores: [], user: user! };
    for (let place = 0; place < looked && found.items.length < k; place++) {
      const [item, score] = [Number(items![place]), Number(scores![place])];
      if (!(item >= 1 && item <= most) || !Number.isFinite(score)) {
        throw new BundleError(`the model answered item ${item} with score ${score}`);
      }
      if (score < NEVER) return found;
      if (!allows(item)) continue;
      found.items.push(item);
      found.scores.push(score);
    }
    return found.items.length < k && looked < most
      ? this.best(events, k, DEEPER * depth, allows)
      : found;
  }

  private async explain(
    events: number[],
    user: ArrayLike<number | bigint>,
    items: number[],
    most: number,
  ): Promise<Explanation> {
    const first = Math.max(0, events.length - whole(most, "explain"));
    const examined = events.length > 1 ? events.slice(first) : [];
    const without = examined.map((_, place) => events.filter((_, at) => at !== first + place));
    const users = without.length ? (await this.run(without, 1)).user! : [];
    const { rows, columns } = await this.table();
    const drops = items.map((item) =>
      examined.map((_, event) => {
        let drop = 0;
        for (let at = 0; at < columns; at++) {
          const change = Number(user[at]) - Number(users[event * columns + at]);
          drop += change * rows[item * columns + at]!;
        }
        return drop;
      }),
    );
    const named = this.named(examined);
    return { events: named.items, titles: named.titles, drops };
  }

  private async table(): Promise<{ rows: Float32Array; columns: number }> {
    const { file, offset, rows, columns, type } = this.bundle.manifest.table;
    if (type !== "<f4") throw new InputError("explanations need a bundle whose table is float32");
    const { buffer } = this.rows ?? (await this.bundle.bytes(file));
    this.rows ??= new Float32Array(buffer, offset, rows * columns);
    return { rows: this.rows, columns };
  }

  /** Run the model on histories of one length. */
  private async run(
    histories: number[][],
    k: number,
  ): Promise<Record<string, ArrayLike<number | bigint>>> {
    const { Tensor } = this.runtime;
    const { kinds = [], target = "", programs } = this.bundle.manifest;
    const [batch, length] = [histories.length, histories[0]!.length];
    const whole = (values: ArrayLike<number>, shape: number[]) =>
      new Tensor("int64", BigInt64Array.from(Array.from(values), BigInt), shape);
    const unknown = () => new Tensor("int64", new BigInt64Array(batch * length), [batch, length]);
    const asked = ["", ...kinds].map((kind) => Number(kind === target));
    const all: Record<string, () => Tensor> = {
      history: () => whole(histories.flat(), [batch, length]),
      k: () => whole([k], [1]),
      since: unknown, // times
      until: () => new Tensor("int64", new BigInt64Array(batch), [batch]),
      kind: unknown,
      objective: () => {
        const weights = Float32Array.from(histories.flatMap(() => asked));
        return new Tensor("float32", weights, [batch, asked.length]);
      },
    };
    const feeds = Object.fromEntries(programs.model.inputs.map(({ name }) => [name, all[name]!()]));
    const outputs = await this.session.run(feeds);
    return Object.fromEntries(
      Object.entries(outputs).map(([name, tensor]) => [name, tensor.data as Float32Array]),
    );
  }
}

function whole(value: number, name: string): number {
  if (!Number.isSafeInteger(value) || value < 1) {
    throw new InputError(`${name} must be a whole number from 1, got ${String(value).slice(0, 60)}`);
  }
  return value;
}
