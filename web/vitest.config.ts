import { defineConfig } from "vitest/config";

// One file at a time: the browser's times are measured beside nothing else.
export default defineConfig({
  test: { include: ["tests/*.test.ts"], fileParallelism: false, testTimeout: 60_000, hookTimeout: 60_000 },
});
