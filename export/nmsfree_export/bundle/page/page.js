// The page: takes pictures, shows what is on them. Nothing of them leaves the browser.

import { canaryPicture, compareCanary } from "./canary.js"
import { openEngine } from "./engine.js"

const by = id => document.getElementById(id)
// The colours of Okabe and Ito, which people tell apart whatever colours they see; where there are
// more classes than colours, by the line.
const COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"]
const DASHES = [[], [4, 2], [1, 1.5], [6, 2, 1, 2]]
const look = label => ({
  colour: COLOURS[label % COLOURS.length],
  dash: DASHES[Math.floor(label / COLOURS.length) % DASHES.length],
})

let spec, engine, opening = Promise.resolve()
let picture = null // an ImageBitmap
let rows = [] // {label, score, box}, best first
let stream = null // of the camera

const round = (value, digits = 1) => value.toFixed(digits)
const megabytes = bytes => `${round(bytes / 1e6)} MB`

function say(text, kind = "") {
  by("said").textContent = text
  by("said").className = kind
  by("said").hidden = !text
}

// Fetch with a word of progress: models are large, and phones slow.
async function load(name) {
  const response = await fetch(name)
  if (!response.ok) throw new Error(`${name}: the server answers ${response.status}`)
  const parts = [], reader = response.body.getReader()
  let size = 0
  for (let got = await reader.read(); !got.done; got = await reader.read()) {
    parts.push(got.value)
    size += got.value.length
    by("engine").textContent = `Loading the model, ${megabytes(size)} …`
  }
  return new Blob(parts).arrayBuffer()
}

async function start() {
  const chosen = document.querySelector("[name=provider]:checked").value
  engine?.close()
  engine = null
  by("check").disabled = true
  by("more").hidden = true
  for (const name of ["pixels", "network"]) by(name).textContent = "–"
  say("")
  try {
    const model = await load("model.onnx")
    by("engine").textContent = "Starting the engine …"
    engine = await openEngine(model, chosen)
  } catch (error) {
    by("engine").textContent = "No engine runs."
    say(error.message, "bad")
    return
  }
  const { provider, card, threads, why, elsewhere, ms } = engine.about
  const count = threads === 1 ? "1 thread" : `${threads} threads`
  const gpu = `Runs on WebGPU${card && ` (${card})`}`
  by("engine").textContent = provider === "webgpu" ? gpu : `Runs on WebAssembly, ${count}`
  const notes = [`Started in ${round(ms, 0)} ms. ${spec.height} × ${spec.width}, ${spec.precision}.`]
  if (why) notes.push(`Not on WebGPU: ${why}.`)
  if (!crossOriginIsolated)
    notes.push("One thread: this server does not send the headers COOP and COEP; nmsfree bundle web … --serve does.")
  if (elsewhere.length)
    notes.push(`On the processor all the same, as shape arithmetic or for types that this WebGPU lacks: ${elsewhere.join(", ")}.`)
  by("notes").replaceChildren(...notes.map(text => Object.assign(document.createElement("li"), { textContent: text })))
  by("more").hidden = false
  by("check").disabled = false
}

// One start at a time, whatever is clicked meanwhile; `start` tells its errors itself.
async function restart() {
  await (opening = opening.then(start))
  if (!stream) await detect()
}

async function detect() {
  if (!engine || !picture) return
  const asked = picture
  const bitmap = await createImageBitmap(asked)
  const found = await engine.run({ bitmap }, [bitmap])
  if (!found || picture !== asked) return // of an engine or a picture that is gone
  rows = Array.from({ length: found.num_detections[0] }, (_, i) => ({
    label: found.detection_classes[i],
    score: found.detection_scores[i],
    box: Array.from(found.detection_boxes.slice(4 * i, 4 * i + 4)),
  }))
  by("pixels").textContent = round(found.ms.pixels)
  by("network").textContent = round(found.ms.network)
  show()
}

function show() {
  const least = Number(by("threshold").value)
  by("shown").textContent = round(least, 2)
  if (!picture) return
  const begun = performance.now()
  const seen = rows.filter(row => row.score > least)
  draw(seen)
  by("draw").textContent = round(performance.now() - begun)
  by("count").textContent = seen.length === 1 ? "1 detection" : `${seen.length} detections`
  by("canvas").setAttribute("aria-label", `picture with ${by("count").textContent}`)
  by("rows").replaceChildren(...seen.map(row => {
    const line = lineOf(row)
    line.onmouseenter = line.onfocus = () => draw([row]) // among many, which one it is
    line.onmouseleave = line.onblur = () => draw(seen)
    return line
  }))
}

function draw(seen) {
  const canvas = by("canvas"), pen = canvas.getContext("2d")
  const { width, height } = picture
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height })
  canvas.hidden = false
  by("empty").hidden = true
  by("stage").classList.add("full")
  pen.drawImage(picture, 0, 0)
  // As wide on the screen, however large the picture is.
  const unit = Math.max(width / (canvas.clientWidth || width), width / 2000)
  pen.font = `600 ${13 * unit}px system-ui, sans-serif`
  pen.textBaseline = "top"
  for (const { label, score, box: [x1, y1, x2, y2] } of [...seen].reverse()) {
    const { colour, dash } = look(label)
    const edges = [["#000a", 4, []], [colour, 2.5, dash]]
    for (const [style, wide, line] of edges) {
      pen.strokeStyle = style
      pen.lineWidth = wide * unit
      pen.setLineDash(line.map(part => part * 2.5 * unit))
      pen.strokeRect(x1, y1, x2 - x1, y2 - y1)
    }
    const text = `${spec.class_names[label]} ${round(score, 2)}`
    const wide = pen.measureText(text).width + 8 * unit, high = 18 * unit
    const left = Math.max(0, Math.min(x1, width - wide)), top = y1 >= high ? y1 - high : y1
    pen.fillStyle = colour
    pen.fillRect(left, top, wide, high)
    pen.fillStyle = colour === "#0072B2" ? "#fff" : "#000"
    pen.fillText(text, left + 4 * unit, top + 2.5 * unit)
  }
}

function lineOf({ label, score, box }) {
  const row = document.createElement("tr")
  for (const text of [spec.class_names[label], round(score, 2), box.map(side => round(side, 0)).join(" ")])
    row.insertCell().textContent = text
  row.tabIndex = 0
  row.title = `${score.toFixed(5)}: ${box.map(side => round(side, 2)).join(" ")}`
  const { colour, dash } = look(label)
  const mark = document.createElementNS("http://www.w3.org/2000/svg", "svg")
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path")
  const marks = { d: "M0 6h18", stroke: colour, "stroke-width": 5, "stroke-dasharray": dash.map(part => 2 * part).join(" ") }
  for (const [name, value] of Object.entries(marks)) line.setAttribute(name, value)
  mark.setAttribute("viewBox", "0 0 18 12")
  mark.append(line)
  row.cells[0].prepend(mark)
  return row
}

async function take(file) {
  if (!file) return
  stop()
  say("")
  const begun = performance.now()
  let made
  try {
    // The file's own numbers: no colour profile changes them.
    made = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" })
  } catch {
    say(`${file.name}: no picture that this browser can read`, "bad")
    return
  }
  picture?.close()
  picture = made
  rows = []
  by("decode").textContent = round(performance.now() - begun)
  show()
  if (engine) await detect() // else who starts the engine does
}

// Frames of the camera, each when the one before is done.
async function film() {
  const video = by("video"), own = stream
  while (stream === own && video.videoWidth) {
    const begun = performance.now()
    const made = await createImageBitmap(video)
    if (stream !== own) return made.close()
    picture?.close()
    picture = made
    by("decode").textContent = round(performance.now() - begun)
    await detect()
    await new Promise(requestAnimationFrame)
  }
}

async function camera() {
  if (stream) return stop()
  if (!navigator.mediaDevices) return say("The camera needs https or localhost.", "bad")
  by("camera").disabled = true // one question at a time
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } })
  } catch (error) {
    return say(`No camera: ${error.message}`, "bad")
  } finally {
    by("camera").disabled = false
  }
  say("")
  by("camera").setAttribute("aria-pressed", "true")
  by("camera").textContent = "Stop the camera"
  by("video").srcObject = stream
  await by("video").play()
  await opening
  await film()
}

function stop() {
  stream?.getTracks().forEach(track => track.stop())
  stream = null
  by("camera").setAttribute("aria-pressed", "false")
  by("camera").textContent = "Camera"
}

async function check() {
  const { canary } = spec
  if (!canary) return say("This file has no canary: write it again with nmsfree export or adopt.", "bad")
  say("Checking …")
  const dims = [1, spec.height, spec.width, 3]
  const pixels = canaryPicture(spec.height, spec.width, canary.seed)
  const found = await engine.run({ pixels, dims }, [pixels.buffer])
  if (!found) return // the engine was changed meanwhile
  const { ok, rows, same, score, box, allowed } = compareCanary(spec, found, engine.about.provider)
  const numbers = `${same} of ${rows} rows, scores within ${score.toExponential(1)} (allowed ${allowed.score}), boxes within ${round(box, 4)} px (allowed ${allowed.box})`
  say(`This browser answers ${ok ? "as" : "otherwise than"} the file did when it was written: ${numbers}.`, ok ? "good" : "bad")
}

const safely = work => async event => {
  try {
    await work(event)
  } catch (error) {
    stop()
    say(error.message, "bad")
  }
}

const stage = by("stage")
document.addEventListener("dragover", event => { event.preventDefault(); stage.classList.add("over") })
document.addEventListener("dragleave", event => { if (!event.relatedTarget) stage.classList.remove("over") })
document.addEventListener("drop", safely(event => {
  event.preventDefault()
  stage.classList.remove("over")
  return take(event.dataTransfer.files[0])
}))
document.addEventListener("paste", safely(event => take(event.clipboardData.files[0])))
by("file").addEventListener("change", safely(event => take(event.target.files[0])))
by("camera").addEventListener("click", safely(camera))
by("check").addEventListener("click", safely(check))
by("threshold").addEventListener("input", show)
window.addEventListener("resize", show)
by("providers").addEventListener("change", safely(restart))

safely(async () => {
  const response = await fetch("model.json")
  if (!response.ok) throw new Error(`model.json: the server answers ${response.status}`)
  spec = await response.json()
  document.title = by("name").textContent = spec.name
  by("threshold").min = spec.score_floor
  by("threshold").value = spec.threshold
  show()
  await restart()
})()
