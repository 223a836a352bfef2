// The canary: a picture that any language can compute, and what the file answered to it when it was
// written. The formula and its words are in `nmsfree.canary`.

const FAINT = 1e-4 // scores below count as this one
const CUT = 1e-3 // of ln(score): rows this near to the end of the list may be cut off
const FAR = 10 // tolerances: beyond, it is another object

// Uint8Array of height × width × 3, blue, green, red.
export function canaryPicture(height, width, seed) {
  const pixels = new Uint8Array(height * width * 3)
  const part = (side, x, y, c) => {
    const place = 3 * Math.floor(x / side) + 12288 * Math.floor(y / side)
    const i = Math.imul(seed + side + place + c, 2654435761)
    return Math.imul(i ^ (i >>> 15), 2246822519) >>> 24
  }
  for (let y = 0, at = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let c = 0; c < 3; c++) {
        const value = (3 * part(32, x, y, c) + part(8, x, y, c)) >> 2
        pixels[at++] = seed % 2 ? (value >> 1) + 64 : value
      }
  return pixels
}

const log = score => Math.log(Math.max(score, FAINT))

// Rows of a canary, base64 of little-endian floats: {box, score, label}, score as its logarithm.
function givenRows(text) {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0))
  const view = new DataView(bytes.buffer)
  return Array.from({ length: bytes.length / 24 }, (_, i) => {
    const at = j => view.getFloat32(24 * i + 4 * j, true)
    return { box: [0, 1, 2, 3].map(at), score: log(at(4)), label: at(5) }
  })
}

// Compare what an engine answered with the rows in the description. "cuda" stands for any graphics
// card: its tolerance is that of the file's own precision. {ok, rows, same, score, box}
export function compareCanary(spec, found, provider) {
  const { canary } = spec
  const allowed = canary.tolerances[provider === "webgpu" ? "cuda" : "cpu"]
  const wanted = givenRows(canary.rows)
  const count = spec.nms ? found.num_detections[0] : found.detection_scores.length
  const ours = Array.from({ length: count }, (_, i) => ({
    box: Array.from(found.detection_boxes.slice(4 * i, 4 * i + 4)),
    score: log(found.detection_scores[i]),
    label: found.detection_classes[i],
  }))
  const pairs = []
  for (const a of wanted)
    for (const b of ours) {
      if (a.label !== b.label) continue
      const score = Math.abs(a.score - b.score)
      const box = Math.max(...a.box.map((side, k) => Math.abs(side - b.box[k])))
      const apart = Math.max(score / allowed.score, box / allowed.box)
      if (apart <= FAR) pairs.push({ a, b, score, box, apart })
    }
  pairs.sort((one, other) => one.apart - other.apart)
  const taken = new Set(), same = []
  for (const pair of pairs) {
    if (taken.has(pair.a) || taken.has(pair.b)) continue
    taken.add(pair.a).add(pair.b)
    if (pair.apart <= 1) same.push(pair)
  }
  const cut = rows => rows.length === spec.top_k
    ? Math.min(...rows.map(row => row.score)) : log(spec.score_floor)
  const alone = (rows, other, key) => {
    const partners = new Set(same.map(pair => pair[key]))
    return rows.filter(row => !partners.has(row) && row.score > cut(other) + CUT).length
  }
  const missing = Math.max(alone(wanted, ours, "a"), alone(ours, wanted, "b"))
  const largest = key => same.reduce((most, pair) => Math.max(most, pair[key]), 0)
  const rows = wanted.length
  const ok = same.length > 0 && missing <= allowed.missing * rows
  return { ok, rows, same: rows - missing, score: largest("score"), box: largest("box"), allowed }
}
