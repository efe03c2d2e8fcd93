// Runs the cases of a job with the onnxruntime that is given, in Node.js or in a browser.
//
// A job is what `tools/runtimes.py` writes: {images: {dims, data}, cases: [{name, file, steps, states}]}. States are those
// of the step form, [[input, output, {dims, data}], ...], or null for a form that runs all steps by itself: JavaScript
// sees neither a file's metadata nor its initializers.

const STEP = "ftbc/step";

/** The outputs of a file for a batch of images: an ort.Tensor. */
export async function scores(ort, model, images, steps, states, options) {
  const session = await ort.InferenceSession.create(model, options);
  const image = new ort.Tensor("float32", Float32Array.from(images.data), images.dims);
  const [output] = session.outputNames;
  if (!states) return (await session.run({ image }))[output];
  const feeds = { image, [STEP]: new ort.Tensor("int64", BigInt64Array.of(0n), []) };
  for (const [name, , start] of states) feeds[name] = new ort.Tensor("float32", Float32Array.from(start.data), start.dims);
  let found;
  for (let t = 0; t < steps; t++) {
    found = await session.run(feeds);
    feeds[STEP] = found[`${STEP}/next`];
    for (const [name, after] of states) feeds[name] = found[after];
  }
  return found[output];
}

/** Every case of a job: name -> {dims, data}, or {error}. `read` gives the bytes of a file. */
export async function runJob(ort, job, read, options) {
  const results = {};
  for (const { name, file, steps, states } of job.cases) {
    try {
      const found = await scores(ort, await read(file), job.images, steps, states, options);
      results[name] = { dims: found.dims, data: Array.from(found.data) };
    } catch (error) {
      results[name] = { error: String(error.message ?? error) };
    }
  }
  return results;
}
