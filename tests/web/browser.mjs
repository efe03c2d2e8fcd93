// node browser.mjs CHROMIUM JOB RESULT: runs a job in onnxruntime-web (WebAssembly) in headless Chromium.
// node browser.mjs CHROMIUM --page FOLDER: opens FOLDER/index.html and prints the first line that it logs.
//
// Pages are served on 127.0.0.1: /ort/ is onnxruntime-web, /file is a file of the job, anything else is beside the page.
import { createServer } from "node:http";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const HERE = dirname(fileURLToPath(import.meta.url));
const KINDS = { ".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm" };
const ORT = join(HERE, "node_modules/onnxruntime-web/dist");

/** Serves files on a free port of 127.0.0.1; `allowed` are files that may be asked for by their whole path. */
function serve(folder, allowed = []) {
  const server = createServer((request, response) => {
    const url = new URL(request.url, "http://127.0.0.1");
    const path = normalize(decodeURIComponent(url.pathname));
    const file =
      path === "/file" && allowed.includes(url.searchParams.get("path"))
        ? url.searchParams.get("path")
        : path.startsWith("/ort/")
          ? join(ORT, path.slice(5))
          : join(folder, path);
    try {
      const body = readFileSync(file);
      response.writeHead(200, { "Content-Type": KINDS[extname(file)] ?? "application/octet-stream" }).end(body);
    } catch {
      response.writeHead(404, { "Content-Type": "text/html" }).end("<!doctype html><title>nothing here</title>");
    }
  });
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(server)));
}

/** Opens a page of a folder in headless Chromium and hands it on; everything is closed afterwards. */
async function withPage(executablePath, folder, allowed, use) {
  const server = await serve(folder, allowed);
  const profile = mkdtempSync(join(tmpdir(), "ftbc-chromium-"));
  const quiet = ["--disable-quic", "--disable-sync", "--disable-background-networking", "--disable-component-update"];
  const args = ["--no-sandbox", "--disable-gpu", "--no-first-run", ...quiet];
  const browser = await chromium.launchPersistentContext(profile, { executablePath, args, headless: true });
  try {
    const page = await browser.newPage();
    await use(page, `http://127.0.0.1:${server.address().port}`);
  } finally {
    await browser.close();
    server.close();
    rmSync(profile, { recursive: true, force: true });
  }
}

/** In the page: runs the job. */
async function inPage(job) {
  const ort = await import("/ort/ort.wasm.min.mjs");
  const { runJob } = await import("/snn.mjs");
  ort.env.wasm.wasmPaths = "/ort/";
  ort.env.wasm.numThreads = 1;
  const read = async (file) => {
    const answer = await fetch(`/file?path=${encodeURIComponent(file)}`);
    if (!answer.ok) throw new Error(`${file}: HTTP ${answer.status}`);
    return new Uint8Array(await answer.arrayBuffer());
  };
  const results = await runJob(ort, job, read, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  return { version: ort.env.versions.web, browser: navigator.userAgent, results };
}

const [executable, first, second] = process.argv.slice(2);
if (first === "--page") {
  await withPage(executable, second, [], async (page, address) => {
    const said = page.waitForEvent("console", { predicate: (each) => each.type() === "log", timeout: 60000 });
    page.on("pageerror", (error) => process.stderr.write(`${error}\n`));
    await page.goto(`${address}/index.html`);
    process.stdout.write(`${(await said).text()}\n`);
  });
} else {
  const job = JSON.parse(readFileSync(first));
  await withPage(executable, HERE, job.cases.map((each) => each.file), async (page, address) => {
    await page.goto(address); // nothing is there, but it is a page of this address
    writeFileSync(second, JSON.stringify(await page.evaluate(inPage, job)));
  });
}
