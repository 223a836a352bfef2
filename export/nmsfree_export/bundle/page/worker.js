// Runs the model away from the page's thread. It is asked {id, open} first and {id, run} then, and
// answers {id, found} or {id, error}.

const BUILDS = { webgpu: "ort.webgpu.bundle.min.mjs", wasm: "ort.wasm.bundle.min.mjs" }
let ort, session, canvas, pen

// The graphics card of WebGPU, or why there is none: {card, why}. One that the processor emulates is
// many times slower than WebAssembly, and is taken only where WebGPU is asked for.
async function lookForCard(provider) {
  if (!self.isSecureContext) return { why: "WebGPU needs https or localhost" }
  if (!navigator.gpu) return { why: "this browser has no WebGPU" }
  const adapter = await navigator.gpu.requestAdapter().catch(() => null)
  if (!adapter) return { why: "WebGPU finds no graphics card that it may use" }
  const { vendor, architecture, description, isFallbackAdapter } = adapter.info
  const card = description || [vendor, architecture].filter(Boolean).join(" ")
  const emulated = isFallbackAdapter || architecture === "swiftshader"
  return { card, why: emulated && provider === "auto" ? `the processor would emulate it (${card})` : "" }
}

// Calls `work` while what the console is told is kept: which operators run on the processor is only
// in ONNX Runtime's log.
async function overheard(work) {
  const lines = [], names = ["log", "info", "debug", "warn", "error"]
  const usual = names.map(name => console[name])
  for (const name of names) console[name] = (...words) => lines.push(words.join(" "))
  try {
    return [await work(), lines]
  } finally {
    names.forEach((name, i) => { console[name] = usual[i] })
  }
}

// The kinds of operators that a log places on the processor.
function placed(lines) {
  const kinds = new Set()
  let here = false
  for (const line of lines.flatMap(text => text.split("\n"))) {
    const title = line.match(/(?:Node\(s\)|All nodes) placed on \[(\w+)\]/)
    if (title) here = title[1] === "CPUExecutionProvider"
    const node = line.match(/(?:\]|^)\s+(\w+) \(.*\)\s*$/)
    if (here && !title && node) kinds.add(node[1])
  }
  return [...kinds].sort()
}

async function start(provider, model, threads) {
  ort = await import(`./ort/${BUILDS[provider]}`)
  ort.env.wasm.numThreads = threads
  const options = { executionProviders: [provider], graphOptimizationLevel: "all" }
  if (provider === "wasm") {
    session = await ort.InferenceSession.create(model, options)
    return []
  }
  ort.env.logLevel = "verbose"
  options.logSeverityLevel = 0
  const [made, lines] = await overheard(() => ort.InferenceSession.create(model, options))
  session = made
  ort.env.logLevel = "warning"
  return placed(lines)
}

// provider: "auto", "webgpu" or "wasm"; only "auto" may become another one.
async function open({ model, provider, threads }) {
  const begun = performance.now()
  const content = new Uint8Array(model)
  let { card = "", why } = provider === "wasm" ? { why: "" } : await lookForCard(provider)
  let elsewhere = [], used = provider === "wasm" || why ? "wasm" : "webgpu"
  if (provider === "webgpu" && why) throw new Error(why)
  // Two threads on one core wait for each other: the browser counts what a core can run at once.
  const cores = Math.min(4, Math.ceil((navigator.hardwareConcurrency || 1) / 2))
  const many = self.crossOriginIsolated ? threads || cores : 1
  try {
    elsewhere = await start(used, content, many)
  } catch (error) {
    if (used === "wasm" || provider === "webgpu") throw error
    why = `WebGPU failed: ${error.message}`
    used = "wasm"
    await start(used, content, many)
  }
  return { provider: used, card, threads: many, why, elsewhere, ms: performance.now() - begun }
}

// Pixels of an ImageBitmap as the model takes them: rows of blue, green, red.
function read(bitmap) {
  const { width, height } = bitmap
  if (!canvas || canvas.width !== width || canvas.height !== height) {
    canvas = new OffscreenCanvas(width, height)
    pen = canvas.getContext("2d", { alpha: false, willReadFrequently: true })
  }
  pen.drawImage(bitmap, 0, 0)
  bitmap.close()
  const rgba = pen.getImageData(0, 0, width, height).data
  const pixels = new Uint8Array(width * height * 3)
  for (let from = 0, to = 0; to < pixels.length; from += 4, to += 3) {
    pixels[to] = rgba[from + 2]
    pixels[to + 1] = rgba[from + 1]
    pixels[to + 2] = rgba[from]
  }
  return { pixels, dims: [1, height, width, 3] }
}

// An ImageBitmap, or pixels with their dims; Float32Array for a model that takes planar floats.
async function run({ bitmap, pixels, dims }) {
  const begun = performance.now()
  if (bitmap) ({ pixels, dims } = read(bitmap))
  const kind = pixels instanceof Float32Array ? "float32" : "uint8"
  const middle = performance.now()
  const found = await session.run({ images: new ort.Tensor(kind, pixels, dims) })
  const end = performance.now()
  const values = Object.entries(found).map(([name, tensor]) => [name, tensor.data])
  return { ...Object.fromEntries(values), ms: { pixels: middle - begun, network: end - middle } }
}

self.onmessage = async ({ data }) => {
  try {
    self.postMessage({ id: data.id, found: await (data.open ? open(data.open) : run(data.run)) })
  } catch (error) {
    self.postMessage({ id: data.id, error: error?.message ?? String(error) })
  }
}
