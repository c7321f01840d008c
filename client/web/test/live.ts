/** Inferences at parties that run, for the tests in Python: a line of JSON in, a line out. */

import { readFileSync } from "node:fs";
import { MpcClient, SecureQuantError, type Options, type Progress, type Targets } from "../src/index.js";

interface Wanted {
  targets: Targets | Targets[];
  options: Options;
  inputs: number[][];
}

const { targets, options, inputs } = JSON.parse(readFileSync(0, "utf-8")) as Wanted;
try {
  const client = new MpcClient(targets, options);
  const answers = [];
  for (const x of inputs) {
    const told: Progress[] = [];
    const { integers, outputs, stats } = await client.infer(x, { progress: (each) => told.push(each) });
    const floats = Object.values(outputs).map(({ data }) => Array.from(data));
    answers.push({ integers: Array.from(integers, String), floats, stats, told });
  }
  console.log(JSON.stringify({ answers }));
} catch (error) {
  if (!(error instanceof SecureQuantError)) throw error;
  console.log(JSON.stringify({ kind: error.kind, message: error.message }));
}
