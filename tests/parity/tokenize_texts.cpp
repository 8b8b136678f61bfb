// tokenize_texts: token ids of many texts for the comparison with another implementation.
//
// usage   tokenize_texts MODEL [--special] [--parse-special] < texts > ids
// MODEL   a GGUF file, a Hugging Face directory, a tokenizer.json or a vocab.txt
// stdin   for each text its length in bytes as a little-endian 32-bit number, then the bytes
// stdout  for each text the number of ids, then the ids, as little-endian 32-bit numbers
// stderr  one line: texts, bytes, tokens, seconds spent in encode
#include "mneme/core/error.h"
#include "mneme/text/tokenizer.h"
#include "mneme/weights/checkpoint.h"

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace {

std::unique_ptr<mneme::Tokenizer> tokenizer_of(const std::string& model) {
  if (!model.ends_with(".gguf")) return mneme::tokenizer_from_directory(model);
  return mneme::tokenizer_from_gguf(mneme::open_checkpoint(model)->metadata());
}

void write(std::int32_t value) { std::fwrite(&value, sizeof value, 1, stdout); }

}  // namespace

int main(int argc, char** argv) {
  mneme::EncodeOptions options;
  std::string model;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--special") == 0) {
      options.add_special = true;
    } else if (std::strcmp(argv[i], "--parse-special") == 0) {
      options.parse_special = true;
    } else {
      model = argv[i];
    }
  }
  if (model.empty()) {
    std::fputs("usage: tokenize_texts MODEL [--special] [--parse-special] < texts > ids\n", stderr);
    return 2;
  }
  try {
    const auto tokenizer = tokenizer_of(model);
    std::uint32_t length = 0;
    std::string text;
    std::int64_t texts = 0, bytes = 0, tokens = 0;
    std::chrono::duration<double> spent{};
    while (std::fread(&length, sizeof length, 1, stdin) == 1) {
      text.resize(length);
      if (std::fread(text.data(), 1, length, stdin) != length) {
        std::fputs("tokenize_texts: the last text is cut off\n", stderr);
        return 1;
      }
      const auto start = std::chrono::steady_clock::now();
      const auto ids = tokenizer->encode(text, options);
      spent += std::chrono::steady_clock::now() - start;
      write(static_cast<std::int32_t>(ids.size()));
      std::fwrite(ids.data(), sizeof ids[0], ids.size(), stdout);
      ++texts;
      bytes += length;
      tokens += static_cast<std::int64_t>(ids.size());
    }
    std::fprintf(stderr, "%lld texts, %lld bytes, %lld tokens, %.3f s\n",
                 static_cast<long long>(texts), static_cast<long long>(bytes),
                 static_cast<long long>(tokens), spent.count());
  } catch (const mneme::Error& error) {
    std::fprintf(stderr, "tokenize_texts: %s\n", error.what());
    return 1;
  }
  return 0;
}
