import { expect, it } from "vitest";

import { canonical } from "../src/canonical.js";

it.each([
  ['{"b":1.50e-06,"a":[ ],"digest":"x"}', '{"a": [], "b": 1.50e-06}'],
  ['{"a":{"digest":1},"digest":2}', '{"a": {"digest": 1}}'],
  ['{"é":"\\u00e9\\n\\/\\u007f","😀":null}', '{"\\u00e9": "\\u00e9\\n/\\u007f", "\\ud83d\\ude00": null}'],
  ['{"\\ud83d\\ude00":1,"\\uffee":2}', '{"\\uffee": 2, "\\ud83d\\ude00": 1}'],
  ['{"ab":1,"a":{"z":[1,{"y":true}]}}', '{"a": {"z": [1, {"y": true}]}, "ab": 1}'],
])("%s is what Python hashes", (text, line) => {
  expect(canonical(text, "digest")).toBe(line);
});
