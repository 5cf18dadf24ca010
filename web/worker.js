// Pyodide and the package in a worker. It is started from a blob, so that the page's Content-Security-Policy holds for it: one with
// an address of its own would be free to connect anywhere.
let glue, base, wheels;

async function load() {
  const { loadPyodide } = await import(`${base}pyodide/pyodide.mjs`);
  self.python = await loadPyodide({ indexURL: `${base}pyodide/` });
  const listed = await (await fetch(`${base}files.json`)).json();
  wheels = listed.wheels;
  python.unpackArchive(await (await fetch(`${base}${listed.package}`)).arrayBuffer(), "wheel");
  python.FS.writeFile("/home/pyodide/dropped.py", await (await fetch(`${base}dropped.py`)).text());
  glue = python.pyimport("dropped");
  postMessage({ kind: "ready" });
}

// what numpy, h5py and ml_dtypes are needed for, where the page has them
async function unpackWheels() {
  for (const name of wheels.splice(0)) python.unpackArchive(await (await fetch(`${base}wheels/${name}`)).arrayBuffer(), "wheel");
  python.pyimport("importlib").invalidate_caches();
}

function plain(proxy) {
  const value = proxy.toJs({ dict_converter: Object.fromEntries });
  proxy.destroy();
  return value;
}

// what one of the functions of dropped.py says, asked once more where a library was missing and is here
async function ask(question, ...parameters) {
  const answer = plain(question(...parameters));
  if (!answer.missing || !wheels.length) return answer;
  await unpackWheels();
  return ask(question, ...parameters);
}

async function convert({ file, options }) {
  let last = 0;
  const progress = (done, total) => {
    if (done < total && Date.now() - last < 100) return;
    last = Date.now();
    postMessage({ kind: "progress", done, total });
  };
  const found = await ask(glue.inspected, file);
  if (found.refused) return postMessage({ kind: "done", ...found });
  postMessage({ kind: "found", ...found });
  const result = await ask(glue.converted, file, python.toPy(options), progress);
  if (result.pieces) {
    const parts = result.pieces.map(([start, size, data]) => data ?? file.slice(start, start + size));
    result.blob = new Blob(parts, { type: "application/octet-stream" });
    delete result.pieces;
  }
  postMessage({ kind: "done", ...result });
}

onmessage = async ({ data }) => {
  try {
    if (data.base) {
      base = data.base;
      await load();
    } else {
      await convert(data);
    }
  } catch (error) {
    postMessage({ kind: "broken", text: String(error) });
  }
};
