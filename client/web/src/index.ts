export { MpcClient, type Answer, type InferOptions, type Options, type Stats, type Targets } from "./client.js";
export { SecureQuantError } from "./errors.js";
export type { Graph, Port } from "./graph.js";
export type { CallOptions } from "./limits.js";
export type { Model } from "./model.js";
export type { OnProgress, Progress } from "./progress.js";
export type { Inputs, NamedArray } from "./quantize.js";
