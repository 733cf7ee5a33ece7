/** A static server, and a real browser that looks at it. */

import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { extname, join } from "node:path";

import { type Browser, chromium } from "playwright-core";

const TYPES: Record<string, string> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".css": "text/css",
  ".wasm": "application/wasm",
};
export const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
export const BUNDLE = process.env.BUNDLE ?? join(process.cwd(), "..", "models", "ml-latest-small");
export const hasChromium = existsSync(CHROMIUM);

/** Serve a folder, and bundles at the paths that `mounts` names; `asked` records every path. */
export async function serve(
  folder: string,
  mounts: Record<string, string> = {},
): Promise<{ address: string; asked: string[]; server: Server }> {
  const asked: string[] = [];
  const server = createServer(async (request, response) => {
    const path = new URL(request.url!, "http://site").pathname;
    asked.push(path);
    const mount = Object.keys(mounts).find((start) => path.startsWith(start));
    const place = mount ? join(mounts[mount]!, path.slice(mount.length)) : join(folder, path);
    try {
      const file = place.endsWith("/") ? join(place, "index.html") : place;
      const bytes = await readFile(file);
      response.writeHead(200, { "content-type": TYPES[extname(file)] ?? "application/octet-stream" });
      response.end(bytes);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { address: `http://localhost:${(server.address() as AddressInfo).port}/`, asked, server };
}

export function launch(): Promise<Browser> {
  return chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });
}
