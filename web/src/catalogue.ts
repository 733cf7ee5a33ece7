/** The items of a bundle: ids, titles, popularity, and conditions on their attributes. */

import { type Attribute, type Bundle, BundleError } from "./bundle.js";

/** A request holds a value that can't be used; the message names it. */
export class InputError extends Error {
  override name = "InputError";
}

/** An item id: a text, or a whole number if the log of the training had numbers. */
export type Id = string | number | bigint;
export type Value = string | number;
/** Numbers from `min` to `max`, both included. */
export interface Range {
  min?: number;
  max?: number;
}
/** All of these must hold; a list is any of its values, and `"!name"` negates. */
export type Where = Record<string, Value | Value[] | Range>;

const ARRAYS = { "|u1": Uint8Array, "<i4": Int32Array, "<i8": BigInt64Array, "<f8": Float64Array };

export class Catalogue {
  private readonly places: Map<Id, number>;
  private attributes: ArrayBuffer | undefined;
  private order: Int32Array | undefined;

  private constructor(
    private readonly bundle: Bundle,
    readonly ids: readonly Id[],
    readonly titles: readonly string[] | undefined,
    private readonly popularity: Float32Array,
    /** Items that do not count as events. */
    readonly silent: ReadonlySet<number>,
  ) {
    this.places = new Map(ids.map((id, place) => [id, place + 1]));
  }

  static async read(bundle: Bundle): Promise<Catalogue> {
    const { id_type: type, items } = bundle.manifest;
    const has = (name: string) => bundle.has(name);
    const [ids, titles, popularity, silent] = await Promise.all([
      type === "string" ? texts(bundle, "items") : numbers(bundle, "items.i64"),
      has("titles.utf8") ? texts(bundle, "titles") : undefined,
      bundle.bytes("popularity.f32").then((bytes) => new Float32Array(bytes.buffer)),
      has("silent.i64") ? numbers(bundle, "silent.i64") : [],
    ]);
    if (ids.length !== items || popularity.length !== items) {
      throw new BundleError(`the bundle holds ${ids.length} ids for ${items} items`);
    }
    return new Catalogue(bundle, ids, titles, popularity, new Set(silent as number[]));
  }

  /** Return the item indices of ids, 0 for those that the catalogue lacks. */
  index(ids: readonly Id[], name: string): number[] {
    if (!Array.isArray(ids)) throw new InputError(`${name} must be an array of item ids`);
    const wanted = this.bundle.manifest.id_type === "string" ? ["string"] : ["number", "bigint"];
    return ids.map((id, place) => {
      if (!wanted.includes(typeof id)) {
        const what = `${typeof id} ${String(id).slice(0, 60)}`;
        throw new InputError(`${name}[${place}] is ${what}; ids are of type ${wanted[0]}`);
      }
      return this.places.get(typeof id === "bigint" ? exact(id) : id) ?? 0;
    });
  }

  id(item: number): Id {
    return this.ids[item - 1]!;
  }

  title(item: number): string {
    return this.titles?.[item - 1] || String(this.id(item));
  }

  share(item: number): number {
    return this.popularity[item - 1]!;
  }

  /** Return the items by falling popularity, ties to the lower one. */
  popular(): Int32Array {
    const shares = this.popularity;
    this.order ??= Int32Array.from(shares, (_, place) => place + 1).sort(
      (a, b) => shares[b - 1]! - shares[a - 1]! || a - b,
    );
    return this.order;
  }

  /** Return for each item index whether it meets conditions. */
  async where(conditions: Where): Promise<Uint8Array> {
    const meets = new Uint8Array(this.ids.length + 1).fill(1, 1);
    for (const [key, condition] of Object.entries(conditions)) {
      const [name, negated] = key.startsWith("!") ? [key.slice(1), true] : [key, false];
      const holds = (await this.column(name)).test(condition);
      for (let item = 1; item < meets.length; item++) {
        if (meets[item] && holds(item - 1) === negated) meets[item] = 0;
      }
    }
    return meets;
  }

  /** Return the categories of an attribute. */
  async values(name: string): Promise<string[]> {
    return (await this.column(name)).values;
  }

  private async column(name: string): Promise<Column> {
    const known = this.bundle.manifest.attributes ?? [];
    const attribute = known.find((other) => other.name === name);
    if (!attribute) {
      const kept = known.filter(({ arrays }) => arrays.codes ?? arrays.numbers);
      const names = kept.map((other) => other.name).join(", ") || "none";
      throw new InputError(`no attribute is called ${name.slice(0, 60)}; there are: ${names}`);
    }
    this.attributes ??= (await this.bundle.bytes("attributes.bin")).buffer;
    return new Column(attribute, this.attributes);
  }
}

/** An attribute of all items. */
class Column {
  readonly values: string[];

  constructor(
    private readonly attribute: Attribute,
    private readonly file: ArrayBuffer,
  ) {
    const { name, kind, arrays } = attribute;
    if (!arrays.numbers && !arrays.codes) {
      throw new InputError(`${name} is a ${kind}: conditions are on categories and numbers`);
    }
    this.values = arrays.values
      ? split(this.array("values") as Uint8Array, this.array("value_ends"))
      : [];
  }

  /** Return a test of an item, counted from 0. */
  test(condition: Value | Value[] | Range): (item: number) => boolean {
    const asked: unknown[] = Array.isArray(condition) ? condition : [condition];
    if (this.attribute.arrays.numbers) {
      const column = this.array("numbers");
      if (Array.isArray(condition) || typeof condition !== "object") {
        return (item) => asked.includes(column[item]);
      }
      const { min = -Infinity, max = Infinity } = condition;
      return (item) => column[item]! >= min && column[item]! <= max;
    }
    const wanted = new Set(asked.map((value) => this.values.indexOf(String(value))));
    const [codes, ends] = [this.array("codes"), this.array("ends")];
    return (item) => {
      for (let at = item ? Number(ends[item - 1]) : 0; at < Number(ends[item]); at++) {
        if (wanted.has(Number(codes[at]))) return true;
      }
      return false;
    };
  }

  private array(key: string): Uint8Array | Int32Array | BigInt64Array | Float64Array {
    const { offset, count, type } = this.attribute.arrays[key]!;
    return new ARRAYS[type](this.file, offset, count);
  }
}

async function texts(bundle: Bundle, name: string): Promise<string[]> {
  const [blob, ends] = await Promise.all([
    bundle.bytes(`${name}.utf8`),
    bundle.bytes(`${name}.ends.i64`),
  ]);
  return split(blob, new BigInt64Array(ends.buffer));
}

function split(blob: Uint8Array, ends: ArrayLike<number | bigint>): string[] {
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  let begin = 0;
  return Array.from(ends, (until) => {
    const text = decoder.decode(blob.subarray(begin, Number(until)));
    begin = Number(until);
    return text;
  });
}

async function numbers(bundle: Bundle, name: string): Promise<(number | bigint)[]> {
  return Array.from(new BigInt64Array((await bundle.bytes(name)).buffer), exact);
}

/** Return a whole number as a `number` if that holds it. */
function exact(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}
