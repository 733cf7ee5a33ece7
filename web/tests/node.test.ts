import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { afterAll, beforeAll, describe, expect, it } from "vitest";

import { BundleError, type Id, InputError, Ranker } from "ranklet";

import { BUNDLE } from "./site.js";

let ranker: Ranker;
let ids: readonly Id[];
beforeAll(async () => {
  ranker = await Ranker.load(BUNDLE);
  ids = ranker.catalogue.ids;
});
afterAll(() => ranker.close());

const some = (count: number, step: number) => Array.from({ length: count }, (_, at) => ids[(at * step + 7) % ids.length]!);

describe("answers", () => {
  it("are the golden answers of the bundle", async () => {
    const golden = JSON.parse(await readFile(join(BUNDLE, "golden.json"), "utf8"));
    for (const { history, items, scores } of golden) {
      const ranking = await ranker.rank(history, { k: items.length, excludeSeen: false });
      expect(ranking.items).toEqual(items);
      ranking.scores.forEach((score, place) => expect(score).toBeCloseTo(scores[place], 4));
    }
  });

  it("leave out what is filtered, and keep the order of the others", async () => {
    const history = some(20, 131);
    const all = (await ranker.rank(history, { k: ids.length, excludeSeen: false })).items;
    const [gone, few] = [new Set(all.slice(0, 30)), new Set(some(40, 977))];
    const ranked = async (options: object) => (await ranker.rank(history, { k: 25, ...options })).items;
    const seen = new Set(history);
    expect(await ranked({})).toEqual(all.filter((id) => !seen.has(id)).slice(0, 25));
    expect(await ranked({ excludeSeen: false, exclude: [...gone] })).toEqual(all.slice(30, 55));
    expect(await ranked({ excludeSeen: false, candidates: [...few, "no such item"] })).toEqual(
      all.filter((id) => few.has(id)).slice(0, 25),
    );
    expect((await ranker.rank(history, { candidates: all.slice(-3) })).items).toEqual(all.slice(-3));
  });

  it("meet conditions on attributes", async () => {
    const genres = await ranker.values("genres");
    expect(genres).toContain("Animation");
    const [only, others] = await Promise.all(
      ["genres", "!genres"].map((name) => ranker.rank(["1"], { k: ids.length, excludeSeen: false, where: { [name]: "Animation" } })),
    );
    const all = await ranker.rank(["1"], { k: ids.length, excludeSeen: false });
    const inside = new Set(only!.items);
    expect(only!.titles).toContain("Lion King, The (1994)");
    expect(others!.items).toEqual(all.items.filter((id) => !inside.has(id)));
    const either = await ranker.rank(["1"], { k: 50, where: { genres: ["Animation", "no such genre"] } });
    expect(either.items).toEqual(only!.items.filter((id) => id !== "1").slice(0, 50));
  });

  it("are the most popular items where no event is known", async () => {
    const ranking = await ranker.rank(["no such item"], { k: 5 });
    expect(ranking).toMatchObject({ cold: true, unknown: 1 });
    expect(ranking.scores).toEqual([...ranking.scores].sort((a, b) => b - a));
    expect((await ranker.find("", 5)).map(({ item }) => item)).toEqual(ranking.items);
  });

  it("count the latest events alone", async () => {
    const long = some(450, 37);
    const [all, latest] = await Promise.all([long, long.slice(-200)].map((history) => ranker.rank(history, { excludeSeen: false })));
    expect(all!.items).toEqual(latest!.items);
  });

  it("are explained by what the scores lose without an event", async () => {
    const history = some(6, 411);
    const { items, scores, explanation } = await ranker.rank(history, { k: 4, explain: true });
    expect(explanation!.events).toEqual(history);
    const without = await ranker.rank(history.slice(1), { k: ids.length, excludeSeen: false });
    items.forEach((id, place) => {
      const drop = scores[place]! - without.scores[without.items.indexOf(id)]!;
      expect(explanation!.drops[place]![0]).toBeCloseTo(drop, 3);
    });
  });

  it("do not depend on what is asked at the same time", async () => {
    const histories = Array.from({ length: 30 }, (_, at) => some(5 + at, 13 + at));
    const alone = [];
    for (const history of histories) alone.push((await ranker.rank(history)).items);
    const together = await Promise.all(histories.map((history) => ranker.rank(history)));
    expect(together.map(({ items }) => items)).toEqual(alone);
  });
});

describe("errors", () => {
  it.each([
    [() => ranker.rank(["1"], { k: 0 }), "k must be a whole number from 1, got 0"],
    [() => ranker.rank(["1"], { k: 2.5 }), "got 2.5"],
    [() => ranker.rank([1]), "history[0] is number 1; ids are of type string"],
    [() => ranker.rank("1" as never), "history must be an array of item ids"],
    [() => ranker.rank(["1"], { where: { colour: "red" } }), "no attribute is called colour; there are: genres"],
  ])("name the value: %#", async (call, message) => {
    await expect(call()).rejects.toThrow(InputError);
    await expect(call()).rejects.toThrow(message);
  });

  it("refuse a bundle of which a byte was changed", async () => {
    const folder = join(await mkdtemp(join(tmpdir(), "ranklet-")), "bundle");
    const names = ["manifest.json", "model.onnx", "weights.bin", "items.utf8", "popularity.f32"];
    for (const name of names) {
      await cp(BUNDLE, folder, { recursive: true });
      const bytes = await readFile(join(folder, name));
      bytes[bytes.length >> 1]! ^= 1;
      await writeFile(join(folder, name), bytes);
      await expect(Ranker.load(folder)).rejects.toThrow(BundleError);
    }
    await rm(folder, { recursive: true });
    await expect(Ranker.load(folder)).rejects.toThrow("can't be read");
  });
});
