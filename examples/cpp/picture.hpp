// PNG and JPEG files as BGR pixels, by libpng and libjpeg.
#pragma once

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <jpeglib.h>
#include <png.h>

struct Picture {
  std::vector<std::uint8_t> bgr;  // [height, width, 3]
  int height = 0;
  int width = 0;
};

inline Picture read_png(const std::string& path) {
  Picture picture;
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  if (png_image_begin_read_from_file(&image, path.c_str())) {
    image.format = PNG_FORMAT_BGR;
    picture.height = static_cast<int>(image.height);
    picture.width = static_cast<int>(image.width);
    picture.bgr.resize(PNG_IMAGE_SIZE(image));
    if (png_image_finish_read(&image, nullptr, picture.bgr.data(), 0, nullptr)) return picture;
  }
  const std::string why = image.message;
  png_image_free(&image);
  throw std::runtime_error(path + ": " + why);
}

struct JpegErrors : jpeg_error_mgr {
  std::jmp_buf back;
};

// libjpeg leaves by a jump, over which no C++ object may lie: all are the caller's.
inline bool decode_jpeg(std::FILE* file, Picture& picture) {
  jpeg_decompress_struct jpeg;
  JpegErrors errors;
  jpeg.err = jpeg_std_error(&errors);
  errors.error_exit = [](j_common_ptr info) {
    std::longjmp(static_cast<JpegErrors*>(info->err)->back, 1);
  };
  if (setjmp(errors.back)) {
    jpeg_destroy_decompress(&jpeg);
    return false;
  }
  jpeg_create_decompress(&jpeg);
  jpeg_stdio_src(&jpeg, file);
  jpeg_read_header(&jpeg, TRUE);
  jpeg.out_color_space = JCS_EXT_BGR;
  jpeg_start_decompress(&jpeg);
  picture.height = static_cast<int>(jpeg.output_height);
  picture.width = static_cast<int>(jpeg.output_width);
  picture.bgr.resize(std::size_t{3} * jpeg.output_height * jpeg.output_width);
  while (jpeg.output_scanline < jpeg.output_height) {
    JSAMPROW row = picture.bgr.data() + std::size_t{3} * jpeg.output_width * jpeg.output_scanline;
    jpeg_read_scanlines(&jpeg, &row, 1);
  }
  jpeg_finish_decompress(&jpeg);
  jpeg_destroy_decompress(&jpeg);
  return true;
}

inline Picture read_picture(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) throw std::runtime_error(path + ": cannot be opened");
  if (std::fgetc(file.get()) == 0x89) return read_png(path);
  std::rewind(file.get());
  Picture picture;
  if (!decode_jpeg(file.get(), picture)) throw std::runtime_error(path + ": no PNG or JPEG");
  return picture;
}
