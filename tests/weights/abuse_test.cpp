// Damaged and hostile files: whatever the bytes, opening gives a checkpoint whose weights lie
// inside the file, or one Error.
#include "mneme/weights/checkpoint.h"

#include <ATen/ATen.h>

#include "scratch.h"
#include <random>

namespace mneme {
namespace {

using testing::GgufText;
using testing::raw;
using testing::safetensors_bytes;

class Abuse : public testing::ScratchTest {
 protected:
  enum class Outcome { opened, refused };

  // Opens and touches everything; anything but an Error of one line fails the test or crashes it.
  Outcome try_all(const std::string& name, const std::string& bytes) {
    const auto path = write(name, bytes);
    try {
      const auto checkpoint = open_checkpoint(path);
      (void)checkpoint->metadata().size();
      for (const auto& weight_name : checkpoint->names()) {
        try {
          const auto weight = checkpoint->tensor(weight_name);
          EXPECT_LE(weight.bytes, static_cast<std::int64_t>(bytes.size()));
          (void)dequantize(weight).sum().item<float>();
          if (!is_quantized(weight.type)) (void)to_tensor(weight).sum();
        } catch (const Error& error) {
          EXPECT_EQ(error.code(), Errc::unsupported) << error.what();
        }
      }
      return Outcome::opened;
    } catch (const Error& error) {
      EXPECT_TRUE(error.code() == Errc::corrupt || error.code() == Errc::unsupported)
          << error.what();
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(path.string()), std::string::npos) << error.what();
      return Outcome::refused;
    }
  }

  static std::string gguf() {
    GgufText text;
    text.pairs = {
        {"general.architecture", GgufText::value(8, GgufText::text("llama"))},
        {"general.alignment", GgufText::value(4, raw<std::uint32_t>(32))},
        {"llama.block_count", GgufText::value(4, raw<std::uint32_t>(2))},
        {"tokens",
         GgufText::list(8, 3, GgufText::text("a") + GgufText::text("b") + GgufText::text("ab"))},
        {"scores", GgufText::list(6, 3, raw(std::vector<float>{1, 2, 3}))},
        {"nested", GgufText::list(9, 1, raw<std::uint32_t>(0) + raw<std::uint64_t>(2) + "xy")}};
    text.tensors = {{"token_embd.weight", {32, 3}, 8, 0},
                    {"norm.weight", {4}, 0, 128},
                    {"q", {32}, 3, 160},
                    {"h", {2, 2}, 1, 192}};
    text.data.assign(200, '\1');
    return text.bytes();
  }
  static std::string safetensors() {
    return safetensors_bytes(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],)"
                             R"("data_offsets":[0,16]},)"
                             R"("b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]},)"
                             R"("c":{"dtype":"I64","shape":[1],"data_offsets":[22,30]}})",
                             std::string(30, '\1'));
  }
};

TEST_F(Abuse, TheSoundFilesOpen) {
  EXPECT_EQ(try_all("m.gguf", gguf()), Outcome::opened);
  EXPECT_EQ(try_all("m.safetensors", safetensors()), Outcome::opened);
}

TEST_F(Abuse, CutAtEveryByte) {
  for (const auto& [name, whole] :
       {std::pair("m.gguf", gguf()), std::pair("m.safetensors", safetensors())}) {
    for (std::size_t size = 0; size < whole.size(); ++size) {
      EXPECT_EQ(try_all(name, whole.substr(0, size)), Outcome::refused)
          << name << " cut to " << size;
    }
  }
}

TEST_F(Abuse, EveryByteChanged) {
  for (const auto& [name, whole] :
       {std::pair("m.gguf", gguf()), std::pair("m.safetensors", safetensors())}) {
    for (std::size_t at = 0; at < whole.size(); ++at) {
      for (const int flip : {0x01, 0x20, 0x80, 0xff}) {
        auto bytes = whole;
        bytes[at] = static_cast<char>(bytes[at] ^ flip);
        (void)try_all(name, bytes);
      }
    }
  }
}

// Numbers where lengths, counts, types and offsets stand: the ends of their ranges.
TEST_F(Abuse, EveryFieldMadeExtreme) {
  const auto whole = gguf();
  for (std::size_t at = 4; at + 8 <= whole.size() - 200; ++at) {
    for (const std::uint64_t value :
         {std::uint64_t{0}, std::uint64_t{0x7fffffff}, std::uint64_t{0xffffffff},
          std::uint64_t{1} << 61, std::uint64_t{0x7fffffffffffffff}, ~std::uint64_t{0}}) {
      auto bytes = whole;
      bytes.replace(at, 8, raw(value));
      (void)try_all("m.gguf", bytes);
      bytes = whole;
      bytes.replace(at, 4, raw(static_cast<std::uint32_t>(value)));
      (void)try_all("m.gguf", bytes);
    }
  }
}

TEST_F(Abuse, NumbersOfTheHeaderMadeExtreme) {
  const std::string values[] = {"0",
                                "-1",
                                "1e400",
                                "1.5",
                                "9223372036854775807",
                                "18446744073709551615",
                                "99999999999999999999999",
                                "[]",
                                "{}",
                                "null",
                                "true",
                                "\"F16\"",
                                "\"\"",
                                "[[[[[[]]]]]]",
                                ""};
  const auto header = safetensors().substr(8, safetensors().size() - 38);
  for (std::size_t at = 0; at < header.size(); ++at) {
    if (std::isdigit(static_cast<unsigned char>(header[at])) == 0 && header[at] != '"' &&
        header[at] != '[')
      continue;
    for (const auto& value : values) {
      (void)try_all("m.safetensors",
                    safetensors_bytes(header.substr(0, at) + value + header.substr(at + 1),
                                      std::string(30, '\1')));
    }
  }
}

// Several changes at once: pieces moved, doubled, dropped and overwritten.
TEST_F(Abuse, RandomSurgery) {
  std::mt19937 random(20240607);
  const auto below = [&](std::size_t n) {
    return std::uniform_int_distribution<std::size_t>(0, n - 1)(random);
  };
  int opened = 0;
  for (const auto& [name, whole] :
       {std::pair("m.gguf", gguf()), std::pair("m.safetensors", safetensors())}) {
    for (int round = 0; round < 4000; ++round) {
      auto bytes = whole;
      for (std::size_t change = 0, changes = 1 + below(4); change < changes && !bytes.empty();
           ++change) {
        const auto at = below(bytes.size()), size = std::min(bytes.size() - at, 1 + below(16));
        switch (below(4)) {
          case 0:
            bytes.erase(at, size);
            break;
          case 1:
            bytes.insert(at, bytes.substr(below(bytes.size()), size));
            break;
          case 2:
            bytes.replace(at, size, bytes.substr(below(bytes.size()), size));
            break;
          default:
            bytes[at] = static_cast<char>(below(256));
            break;
        }
      }
      opened += try_all(name, bytes) == Outcome::opened ? 1 : 0;
    }
  }
  EXPECT_GT(opened, 0) << "no mutation reached past the header";
}

}  // namespace
}  // namespace mneme
