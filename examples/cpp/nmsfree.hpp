// A detector of `nmsfree export --input any` in OpenVINO: a picture in, detections in its pixels out.
//
// The file resizes, pads and normalises, and maps the boxes back, so nothing of that is here. No
// function throws; what went wrong is a sentence. A detector may be used by several threads.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>
#include <openvino/openvino.hpp>

namespace nmsfree {

struct Image {
  const std::uint8_t* bgr;  // [height, width, 3], rows without gaps
  int height;
  int width;
};

struct Detection {
  float x1, y1, x2, y2;  // pixels of the picture
  float score;           // 0 … 1
  int class_id;          // an index of `Detector::names()`
};

struct Answer {
  std::vector<Detection> detections;  // best first
  std::string error;                  // empty: it worked
};

class Detector {
 public:
  // Opens a file. Returns null, and says why in `error`, if that fails. `threads` of 0 leaves their
  // number to OpenVINO.
  static std::unique_ptr<Detector> open(const std::string& path, std::string& error,
                                        int threads = 0, const std::string& device = "CPU") noexcept {
    try {
      return std::unique_ptr<Detector>(new Detector(path, threads, device));
    } catch (const std::exception& problem) {
      error = path + ": " + problem.what();
    }
    return nullptr;
  }

  // Detects objects with scores above `threshold`; below 0 it is the file's own.
  Answer operator()(const Image& image, float threshold = -1) const noexcept {
    Answer answer;
    try {
      Request request(*this);
      answer.detections = run(*request.infer, image, threshold < 0 ? threshold_ : threshold);
      request.release();
    } catch (const std::exception& problem) {
      answer.error = problem.what();
    }
    return answer;
  }

  const std::vector<std::string>& names() const noexcept { return names_; }
  float threshold() const noexcept { return threshold_; }

 private:
  using Infer = std::unique_ptr<ov::InferRequest>;

  Detector(const std::string& path, int threads, const std::string& device) {
    const auto model = core_.read_model(path);
    const std::vector<std::string> place{"framework", "nmsfree"};  // of the ONNX file's metadata
    if (!model->has_rt_info(place)) throw std::runtime_error("no file of nmsfree");
    const auto spec = nlohmann::json::parse(model->get_rt_info<std::string>(place));
    const auto input = spec.value("input", "model");
    if (input != "any")
      throw std::runtime_error("its input is " + input + ": make it with --input any");
    names_ = spec.at("class_names").get<std::vector<std::string>>();
    threshold_ = spec.at("threshold").get<float>();
    ov::AnyMap settings{ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                        ov::hint::inference_precision(ov::element::f32)};
    if (threads > 0) settings.insert(ov::inference_num_threads(threads));
    compiled_ = core_.compile_model(model, device, settings);
  }

  // An infer request that no other thread has; given back only if the run succeeded.
  struct Request {
    explicit Request(const Detector& owner) : owner(owner) {
      {
        const std::lock_guard<std::mutex> lock(owner.mutex_);
        if (!owner.idle_.empty()) {
          infer = std::move(owner.idle_.back());
          owner.idle_.pop_back();
        }
      }
      if (!infer) infer = std::make_unique<ov::InferRequest>(owner.compiled_.create_infer_request());
    }
    void release() {
      const std::lock_guard<std::mutex> lock(owner.mutex_);
      owner.idle_.push_back(std::move(infer));
    }
    const Detector& owner;
    Infer infer;
  };

  static std::vector<Detection> run(ov::InferRequest& infer, const Image& image, float threshold) {
    const ov::Shape shape{1, static_cast<std::size_t>(image.height),
                          static_cast<std::size_t>(image.width), 3};
    // OpenVINO reads the picture where it is, and writes nothing to it.
    infer.set_tensor("images", ov::Tensor(ov::element::u8, shape, const_cast<std::uint8_t*>(image.bgr)));
    infer.infer();
    const auto count = infer.get_tensor("num_detections").data<std::int32_t>()[0];
    const auto* boxes = infer.get_tensor("detection_boxes").data<float>();
    const auto* scores = infer.get_tensor("detection_scores").data<float>();
    const auto* classes = infer.get_tensor("detection_classes").data<std::int32_t>();
    std::vector<Detection> found;
    for (std::int32_t i = 0; i < count && scores[i] > threshold; ++i) {
      const float* box = boxes + 4 * i;
      found.push_back({box[0], box[1], box[2], box[3], scores[i], classes[i]});
    }
    return found;
  }

  ov::Core core_;
  mutable ov::CompiledModel compiled_;  // which makes requests for any thread
  std::vector<std::string> names_;
  float threshold_ = 0;
  mutable std::mutex mutex_;
  mutable std::vector<Infer> idle_;
};

}  // namespace nmsfree
