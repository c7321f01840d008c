/** demo/page.ts -> cli/secure_quant_cli/web/page.js, which wheels carry. `--check` compares. */

import { readFile, writeFile } from "node:fs/promises";
import { build } from "esbuild";

const OUT = new URL("../../../cli/secure_quant_cli/web/page.js", import.meta.url);

const { outputFiles } = await build({
  entryPoints: [new URL("page.ts", import.meta.url).pathname],
  bundle: true,
  write: false,
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "inline",
  banner: { js: "// Made from client/web/demo by `npm run bundle`; do not edit." },
});
const made = outputFiles[0].text;
if (!process.argv.includes("--check")) {
  await writeFile(OUT, made);
  console.log(`page.js ${made.length}`);
} else if ((await readFile(OUT, "utf-8")) !== made) {
  console.error("page.js is not what client/web/demo says: run npm run bundle");
  process.exitCode = 1;
}
