/** What Node does in its own way. */

import { webcrypto } from "node:crypto";
import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

import * as runtime from "onnxruntime-node";

import type { Runtime } from "./platform.web.js";

export const base = (): string => pathToFileURL(`${process.cwd()}/`).href;

export function start(): Runtime {
  return runtime as unknown as Runtime;
}

export async function read(at: URL): Promise<Response> {
  if (at.protocol !== "file:") return fetch(at);
  try {
    return new Response(new Uint8Array(await readFile(at)));
  } catch (error) {
    return new Response(null, { status: 404, statusText: (error as Error).message });
  }
}

export const subtle = webcrypto.subtle as SubtleCrypto;
