#include "mneme/weights/checkpoint.h"

#include "mneme/core/error.h"
#include "mneme/weights/gguf.h"
#include "mneme/weights/huggingface.h"
#include "mneme/weights/mapped_file.h"

#include <algorithm>
#include <cctype>
#include <string>
#include <system_error>

namespace mneme {

std::unique_ptr<Checkpoint> open_checkpoint(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return weights::open_huggingface(path);
  auto extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(), [](char c) {
    return static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  });
  if (extension == ".safetensors") return weights::open_safetensors(path);
  if (extension == ".gguf") return weights::open_gguf(path);
  // Content-addressed stores keep models under names without an extension.
  const MappedFile file(path);
  const auto bytes = file.bytes();
  const std::string_view start(reinterpret_cast<const char*>(bytes.data()),
                               std::min<std::size_t>(bytes.size(), 9));
  if (start.starts_with("GGUF")) return weights::open_gguf(path);
  if (start.size() == 9 && start[8] == '{') return weights::open_safetensors(path);
  throw Error(
      Errc::unsupported,
      path.string() +
          ": is not a model that can be read: give a GGUF file, a safetensors file or a Hugging "
          "Face directory");
}

}  // namespace mneme
