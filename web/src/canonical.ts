/** JSON as the digest of a manifest is taken of it. */

const TOKEN = /\s*("(?:[^"\\]|\\.)*"|[{}[\]:,]|[^\s{}[\]:,"]+)\s*/y;

/**
 * Return a valid JSON document in one line: keys by code point, numbers as they are written,
 * characters outside printable ASCII escaped. It is `json.dumps(document, sort_keys=True)` of
 * Python without the key `dropped` of the outermost object.
 */
export function canonical(text: string, dropped: string): string {
  TOKEN.lastIndex = 0;
  let token = next();

  function next(): string {
    return TOKEN.exec(text)?.[1] ?? "";
  }

  function advance(): string {
    const now = token;
    token = next();
    return now;
  }

  function value(leftOut?: string): string {
    if (token === "{") return object(leftOut);
    if (token === "[") return `[${list("]", () => value()).join(", ")}]`;
    return token.startsWith('"') ? ascii(advance()) : advance();
  }

  function object(leftOut?: string): string {
    const entries = list("}", () => {
      const key = advance();
      advance(); // the colon
      return [JSON.parse(key) as string, value()] as const;
    });
    const kept = entries.filter(([key]) => key !== leftOut).sort(([a], [b]) => byCodePoint(a, b));
    return `{${kept.map(([key, of]) => `${ascii(JSON.stringify(key))}: ${of}`).join(", ")}}`;
  }

  function list<T>(end: string, entry: () => T): T[] {
    const entries: T[] = [];
    advance();
    while (token !== end) {
      entries.push(entry());
      if (token === ",") advance();
    }
    advance();
    return entries;
  }

  return value(dropped);
}

function ascii(literal: string): string {
  const text = JSON.stringify(JSON.parse(literal));
  const escaped = (unit: string) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return text.replace(/[^ -~]/g, escaped);
}

/** Compare texts as Python does; the order of JavaScript is that of UTF-16. */
function byCodePoint(a: string, b: string): number {
  const [left, right] = [Array.from(a), Array.from(b)];
  const at = left.findIndex((character, place) => character !== right[place]);
  if (at < 0) return left.length - right.length;
  return at >= right.length ? 1 : left[at]!.codePointAt(0)! - right[at]!.codePointAt(0)!;
}
