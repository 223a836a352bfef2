// A model in a worker.

// model: its bytes, an ArrayBuffer, which goes to the worker; provider: "auto", "webgpu" or "wasm";
// threads: of WASM, 0 for half of what the processor runs at once, at most 4. `about` of what comes
// says what runs: {provider, card, threads, why not WebGPU, elsewhere: operators that run on the
// processor all the same, ms}.
export async function openEngine(model, provider = "auto", threads = 0) {
  const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" })
  const waiting = new Map()
  let next = 0
  const ask = (message, transfer) => new Promise((resolve, reject) => {
    waiting.set(++next, { resolve, reject })
    worker.postMessage({ id: next, ...message }, transfer)
  })
  worker.onmessage = ({ data: { id, found, error } }) => {
    if (!waiting.has(id)) return // it was told that the worker failed
    const { resolve, reject } = waiting.get(id)
    waiting.delete(id)
    if (error === undefined) resolve(found)
    else reject(new Error(error))
  }
  worker.onerror = event => {
    for (const { reject } of waiting.values()) reject(new Error(event.message || "worker.js"))
    waiting.clear()
  }
  const close = () => { // who waits gets nothing
    worker.terminate()
    for (const { resolve } of waiting.values()) resolve(undefined)
    waiting.clear()
  }
  try {
    const about = await ask({ open: { model, provider, threads } }, [model])
    return { about, close, run: (input, transfer = []) => ask({ run: input }, transfer) }
  } catch (error) {
    close()
    throw error
  }
}
