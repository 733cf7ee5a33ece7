import { mkdtemp, readFile, rm } from "node:fs/promises";
import type { Server } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { Browser, Page } from "playwright-core";
import { build } from "vite";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

import type * as ranklet from "ranklet";

import { BUNDLE, hasChromium, launch, serve } from "./site.js";

type Tested = typeof globalThis & typeof ranklet;
const BUNDLES = (process.env.BUNDLES ?? BUNDLE).split(",");
const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

describe.skipIf(!hasChromium)("in Chromium", () => {
  let browser: Browser, folder: string, page: Page;
  let tested: Awaited<ReturnType<typeof serve>>, demo: Awaited<ReturnType<typeof serve>>;
  const failures: string[] = [];

  async function open(address: string, width = 1280): Promise<Page> {
    const opened = await (await browser.newContext({ viewport: { width, height: 844 } })).newPage();
    opened.on("pageerror", (error) => failures.push(error.message));
    await opened.goto(address);
    return opened;
  }

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "ranklet-"));
    const root = join(process.cwd(), "tests/page");
    const options = { outDir: folder, emptyOutDir: true, target: "es2022" };
    await build({ root, base: "./", logLevel: "error", build: options, worker: { format: "es" } });
    const mounts = Object.fromEntries(BUNDLES.map((path, place) => [`/bundle-${place}/`, path]));
    tested = await serve(folder, mounts);
    demo = await serve(join(process.cwd(), "demo/dist"));
    browser = await launch();
    page = await open(tested.address);
    await page.waitForFunction("window.Ranker");
  });
  afterAll(async () => {
    await browser?.close();
    for (const { server } of [tested, demo]) (server as Server | undefined)?.close();
    await rm(folder, { recursive: true });
  });

  it.each(BUNDLES)("gives the golden answers of %s, in the page and in a worker", async (path) => {
    const golden = JSON.parse(await readFile(join(path, "golden.json"), "utf8"));
    const address = `bundle-${BUNDLES.indexOf(path)}`;
    const answers = await page.evaluate(
      async ({ address, golden }) => {
        const { Ranker, WorkerRanker } = globalThis as Tested;
        const rankers = [await Ranker.load(address), await WorkerRanker.load(address)];
        const ranked = rankers.map((ranker) =>
          Promise.all(golden.map(({ history, items }: { history: string[]; items: string[] }) => ranker.rank(history, { k: items.length, excludeSeen: false }))),
        );
        const all = await Promise.all(ranked);
        for (const ranker of rankers) await ranker.close();
        return all;
      },
      { address, golden },
    );
    for (const rankings of answers) {
      golden.forEach(({ items, scores }: { items: string[]; scores: number[] }, place: number) => {
        expect(rankings[place]!.items).toEqual(items);
        rankings[place]!.scores.forEach((score: number, at: number) => expect(score).toBeCloseTo(scores[at]!, 4));
      });
    }
  });

  it("asks nobody while it ranks, and reads files from the cache the next time", async () => {
    const answer = () =>
      page.evaluate(async () => {
        const begin = performance.now();
        const ranker = await (globalThis as Tested).Ranker.load("bundle-0");
        const { items } = await ranker.rank(["1", "2571"]);
        const first = performance.now() - begin;
        const times: number[] = [];
        const events = Array.from({ length: 250 }, (_, at) => ranker.catalogue.ids[at * 31]!);
        for (let turn = 0; turn < 200; turn++) {
          const before = performance.now();
          await ranker.rank(events.slice(turn, turn + 50));
          times.push(performance.now() - before);
        }
        return { items, first, median: times.sort((a, b) => a - b)[100]! };
      });
    await answer();
    const before = tested.asked.length;
    const { items, first, median } = await answer();
    expect(items).toHaveLength(10);
    expect(tested.asked.slice(before)).toEqual(["/bundle-0/manifest.json"]);
    console.log(`first answer from the cache ${first.toFixed(0)} ms, p50 at 50 events ${median.toFixed(2)} ms`);
  });

  it("raises the errors of the worker by their names", async () => {
    const names = await page.evaluate(async () => {
      const { WorkerRanker } = globalThis as Tested;
      const ranker = await WorkerRanker.load("bundle-0");
      const name = (error: Error) => error.name;
      return [await ranker.rank([1]).then(String, name), await WorkerRanker.load("nowhere").then(String, name)];
    });
    expect(names).toEqual(["InputError", "BundleError"]);
  });

  it.each([1280, 390])("shows a page %i pixels wide that axe finds nothing wrong with", async (width) => {
    const shown = await open(demo.address, width);
    await shown.waitForSelector("#answers li");
    for (const text of ["toy story", "matrix"]) {
      await shown.fill("#search", text); // by keyboard alone
      await shown.waitForSelector("#found button");
      await shown.keyboard.press("Enter");
      await shown.waitForFunction((count) => document.querySelectorAll("#history li").length === count, text === "matrix" ? 2 : 1);
    }
    await shown.waitForSelector("#answers small");
    expect(await shown.textContent("#answers small")).toContain("because of");
    await shown.addScriptTag({ path: AXE });
    const { violations } = await shown.evaluate("axe.run()") as { violations: { id: string }[] };
    expect(violations.map(({ id }) => id)).toEqual([]);
    const [page, window] = await shown.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    expect(page).toBeLessThanOrEqual(window!);
    await shown.waitForSelector("#times[data-median]");
    if (process.env.SHOTS) await shown.screenshot({ path: join(process.env.SHOTS, `demo-${width}.png`), fullPage: true });
  });

  it("works without a network after the first visit", async () => {
    const shown = await open(demo.address);
    await shown.waitForSelector("#times[data-median]");
    await shown.evaluate("navigator.serviceWorker.ready");
    await shown.context().setOffline(true);
    await shown.reload();
    await shown.waitForSelector("#answers li");
    await shown.selectOption("#genre", "Animation");
    await shown.waitForFunction(() => document.querySelector("#answers strong")!.textContent!.length > 0);
  });

  it("raised no error that nobody caught", () => expect(failures).toEqual([]));
});
