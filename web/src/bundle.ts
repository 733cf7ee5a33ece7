/** The files of a bundle: fetched, compared with their digests, and kept by the browser. */

import { base, read, subtle } from "#platform";

import { canonical } from "./canonical.js";

/** A bundle is missing, damaged, or of a format that this version can't read. */
export class BundleError extends Error {
  override name = "BundleError";
}

export interface LoadOptions {
  /** Keep files in the browser's Cache API, by their digests; by default yes where there is one. */
  cache?: boolean;
  /** Threads of one ranking in Node, and in pages that are cross-origin isolated; by default 1. */
  threads?: number;
}

interface Tensor {
  name: string;
}

export interface Attribute {
  name: string;
  kind: string;
  arrays: Record<string, { offset: number; count: number; type: "|u1" | "<i4" | "<i8" | "<f8" }>;
}

/** The part of manifest.json that ranking needs; docs/bundle.md has the whole. */
export interface Manifest {
  format: number;
  items: number;
  id_type: "int64" | "string";
  max_length: number;
  width: number;
  exclude_seen?: boolean;
  attributes?: Attribute[];
  kinds?: string[];
  target?: string;
  programs: { model: { file: string; inputs: Tensor[] } };
  table: { file: string; offset: number; rows: number; columns: number; type: "<f4" | "<f2" };
  files: Record<string, { size: number; sha256: string }>;
  digest: string;
}

const FORMAT = 6;
const MOST_MANIFEST = 1 << 20; // bytes
const CACHE = "ranklet";

export class Bundle {
  private constructor(
    private readonly url: URL,
    private readonly cache: Cache | undefined,
    readonly manifest: Manifest,
  ) {}

  /** Read the manifest of the bundle at an address, which is that of its folder. */
  static async open(address: string | URL, options: LoadOptions): Promise<Bundle> {
    const url = folder(address);
    const keeps = options.cache ?? url.protocol !== "file:";
    const cache = keeps && typeof caches !== "undefined" ? await caches.open(CACHE) : undefined;
    const at = new URL("manifest.json", url);
    let bytes: Uint8Array<ArrayBuffer>;
    try {
      bytes = await download(at);
      await cache?.put(at.href, new Response(bytes));
    } catch (error) {
      const kept = error instanceof TypeError ? await cache?.match(at.href) : undefined; // offline
      if (!kept) throw error;
      bytes = new Uint8Array(await kept.arrayBuffer());
    }
    return new Bundle(url, cache, await checked(bytes, at));
  }

  has(name: string): boolean {
    return Object.hasOwn(this.manifest.files, name);
  }

  /** Return the bytes of a file, which are those that the manifest means. */
  async bytes(name: string): Promise<Uint8Array<ArrayBuffer>> {
    const file = this.manifest.files[name];
    const at = new URL(name, this.url);
    if (!file) throw new BundleError(`the manifest at ${this.url} lists no ${name}`);
    const key = `${at.href}?sha256=${file.sha256}`;
    const kept = await this.cache?.match(key);
    const bytes = kept ? new Uint8Array(await kept.arrayBuffer()) : await download(at);
    if (bytes.length !== file.size || (await sha256(bytes)) !== file.sha256) {
      await this.cache?.delete(key);
      throw new BundleError(`${at} is not the file that the manifest means: its digest differs`);
    }
    if (!kept) await this.cache?.put(key, new Response(bytes));
    return bytes;
  }
}

function folder(address: string | URL): URL {
  const url = new URL(address, base());
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  return url;
}

async function download(at: URL): Promise<Uint8Array<ArrayBuffer>> {
  const answer = await read(at);
  if (!answer.ok) {
    throw new BundleError(`${at} can't be read: ${answer.status} ${answer.statusText}`);
  }
  return new Uint8Array(await answer.arrayBuffer());
}

async function checked(bytes: Uint8Array<ArrayBuffer>, at: URL): Promise<Manifest> {
  if (bytes.length > MOST_MANIFEST) throw new BundleError(`${at} has over ${MOST_MANIFEST} bytes`);
  let manifest: Manifest, line: string;
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    manifest = JSON.parse(text) as Manifest;
    line = canonical(text, "digest");
  } catch (error) {
    throw new BundleError(`${at} is no JSON document: ${(error as Error).message}`);
  }
  if (manifest?.format !== FORMAT) {
    throw new BundleError(`${at} has format ${manifest?.format}; this version reads ${FORMAT}`);
  }
  if ((await sha256(new TextEncoder().encode(line))) !== manifest.digest) {
    throw new BundleError(`${at} was changed: its digest differs`);
  }
  return manifest;
}

async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  if (!subtle) {
    throw new BundleError("digests need a secure page: serve it from https or localhost");
  }
  const digest = new Uint8Array(await subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
