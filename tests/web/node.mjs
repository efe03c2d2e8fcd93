// node node.mjs JOB RESULT: runs a job in onnxruntime-node.
import { readFileSync, writeFileSync } from "node:fs";
import * as ort from "onnxruntime-node";
import { runJob } from "./snn.mjs";

const [job, result] = process.argv.slice(2);
const read = async (file) => new Uint8Array(readFileSync(file));
const found = await runJob(ort, JSON.parse(readFileSync(job)), read, { executionProviders: ["cpu"], logSeverityLevel: 3 });
writeFileSync(result, JSON.stringify({ version: ort.env.versions.node, results: found }));
