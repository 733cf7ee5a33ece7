/** What a browser does in its own way. */

import * as runtime from "onnxruntime-web/wasm";

export type Runtime = typeof runtime;

/** Return the address that relative ones start from. */
export const base = (): string => location.href;

/** Return onnxruntime. */
export function start(threads: number): Runtime {
  runtime.env.wasm.numThreads = globalThis.crossOriginIsolated ? threads : 1;
  return runtime;
}

/** Return the answer of an address; a TypeError says that there is no network. */
export async function read(at: URL): Promise<Response> {
  return fetch(at, { cache: "no-cache" });
}

/** What computes digests; browsers have it on secure pages alone. */
export const subtle: SubtleCrypto | undefined = globalThis.crypto?.subtle;
