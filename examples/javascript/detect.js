// Detections of PNG pictures, a line of JSON each: node detect.js SITE PICTURE…
// SITE is a folder of `nmsfree bundle web`; of it, model.onnx and model.json are read.

import { readFile } from "node:fs/promises"
import ort from "onnxruntime-node"
import { PNG } from "pngjs"

// A PNG as the model takes it: rows of blue, green, red.
function read(file) {
  const { width, height, data } = PNG.sync.read(file)
  const pixels = new Uint8Array(width * height * 3)
  for (let i = 0; i < width * height; i++)
    for (let c = 0; c < 3; c++) pixels[3 * i + c] = data[4 * i + 2 - c]
  return new ort.Tensor("uint8", pixels, [1, height, width, 3])
}

const [site, ...paths] = process.argv.slice(2)
const spec = JSON.parse(await readFile(`${site}/model.json`, "utf8"))
const session = await ort.InferenceSession.create(`${site}/model.onnx`)
for (const image of paths) {
  const found = await session.run({ images: read(await readFile(image)) })
  const detections = []
  for (let i = 0; i < found.num_detections.data[0]; i++) {
    const score = found.detection_scores.data[i]
    if (score <= spec.threshold) break // best first
    const box = Array.from(found.detection_boxes.data.slice(4 * i, 4 * i + 4))
    detections.push({ box, score, class: spec.class_names[found.detection_classes.data[i]] })
  }
  console.log(JSON.stringify({ image, detections }))
}
