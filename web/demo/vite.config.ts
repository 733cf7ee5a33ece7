import { cp } from "node:fs/promises";
import { resolve } from "node:path";
import { defineConfig, type Plugin } from "vite";

const BUNDLE = process.env.BUNDLE ?? resolve(__dirname, "../../models/ml-latest-small");

/** The service worker lists every file of the page, so that the page works offline. */
function offline(): Plugin {
  return {
    name: "offline",
    async generateBundle(_, files) {
      const { readFile } = await import("node:fs/promises");
      const source = await readFile(resolve(__dirname, "offline.js"), "utf8");
      const names = JSON.stringify(["./", ...Object.keys(files)]);
      this.emitFile({ type: "asset", fileName: "offline.js", source: source.replace("FILES", names) });
    },
    async closeBundle() {
      await cp(BUNDLE, resolve(__dirname, "dist/bundle"), { recursive: true });
    },
  };
}

export default defineConfig({
  root: __dirname,
  base: "./",
  worker: { format: "es" },
  build: { target: "es2022", outDir: "dist", emptyOutDir: true },
  plugins: [offline()],
});
