// detect MODEL [--bench N] [--threads N] PICTURE…
//
// Prints a line of JSON for each picture. With --bench each picture runs N times more, and the line
// holds the milliseconds of every run, by the clock and of all processors together; reading the file
// is not in them.
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <iostream>

#include "nmsfree.hpp"
#include "picture.hpp"

namespace {

struct Arguments {
  std::string model;
  std::vector<std::string> pictures;
  int bench = 0;
  int threads = 0;
};

Arguments parse(int count, char** values) {
  Arguments found;
  for (int i = 1; i < count; ++i) {
    const std::string word = values[i];
    if ((word == "--bench" || word == "--threads") && i + 1 < count)
      (word == "--bench" ? found.bench : found.threads) = std::atoi(values[++i]);
    else if (found.model.empty())
      found.model = word;
    else
      found.pictures.push_back(word);
  }
  return found;
}

nlohmann::json as_json(const nmsfree::Detection& found, const nmsfree::Detector& detector) {
  const auto id = static_cast<std::size_t>(found.class_id);
  return {{"box", {found.x1, found.y1, found.x2, found.y2}},
          {"score", found.score},
          {"class", detector.names().at(id)}};
}

nlohmann::json look_at(const std::string& path, const nmsfree::Detector& detector, int bench) {
  const Picture picture = read_picture(path);
  const nmsfree::Image image{picture.bgr.data(), picture.height, picture.width};
  const auto answer = detector(image);
  if (!answer.error.empty()) throw std::runtime_error(path + ": " + answer.error);
  nlohmann::json line{{"image", path}, {"detections", nlohmann::json::array()}};
  for (const auto& found : answer.detections) line["detections"].push_back(as_json(found, detector));
  for (int i = 0; i < bench; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const auto ticks = std::clock();
    detector(image);
    line["processor_ms"].push_back(1e3 * static_cast<double>(std::clock() - ticks) / CLOCKS_PER_SEC);
    const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - start;
    line["ms"].push_back(spent.count());
  }
  return line;
}

}  // namespace

int main(int count, char** values) {
  const Arguments asked = parse(count, values);
  if (asked.pictures.empty()) {
    std::cerr << "usage: detect MODEL [--bench N] [--threads N] PICTURE...\n";
    return 2;
  }
  std::string error;
  const auto detector = nmsfree::Detector::open(asked.model, error, asked.threads);
  if (!detector) {
    std::cerr << "error: " << error << '\n';
    return 2;
  }
  int status = 0;
  for (const auto& path : asked.pictures) {
    try {
      std::cout << look_at(path, *detector, asked.bench) << '\n';
    } catch (const std::exception& problem) {
      std::cerr << "error: " << problem.what() << '\n';
      status = 1;
    }
  }
  return status;
}
