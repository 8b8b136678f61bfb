#include "mneme/weights/safetensors.h"

#include "mneme/weights/checkpoint.h"

#include <ATen/ATen.h>

#include "scratch.h"

namespace mneme {
namespace {

using testing::expect_error;
using testing::raw;
using testing::safetensors_bytes;

class Safetensors : public testing::ScratchTest {
 protected:
  void refuses(const std::string& header, const std::string& data, const std::string& part) {
    const auto path = write("bad.safetensors", safetensors_bytes(header, data));
    expect_error(Errc::corrupt, part, [&] { SafetensorsFile{path}; });
    expect_error(Errc::corrupt, path.string(), [&] { SafetensorsFile{path}; });
  }
};

TEST_F(Safetensors, ReadsAFileWrittenByHand) {
  const auto path = write(
      "a.safetensors",
      safetensors_bytes(
          R"({"__metadata__":{"format":"pt"},"b":{"dtype":"I64","shape":[],"data_offsets":[8,16]},)"
          R"("a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}   )",
          raw(1.5f) + raw(-2.f) + raw<std::int64_t>(-7)));
  std::map<std::string, std::string> metadata;
  const auto tensors = read_safetensors(path, &metadata);
  EXPECT_EQ(metadata, (std::map<std::string, std::string>{{"format", "pt"}}));
  ASSERT_EQ(tensors.size(), 2U);
  EXPECT_TRUE(at::equal(tensors.at("a"), at::tensor({1.5f, -2.f}).view({2, 1})));
  EXPECT_EQ(tensors.at("b").item<std::int64_t>(), -7);

  // The integer buffer is no weight.
  const auto checkpoint = open_checkpoint(path);
  EXPECT_EQ(checkpoint->format(), "safetensors");
  EXPECT_EQ(checkpoint->names(), std::vector<std::string>{"a"});
  EXPECT_FALSE(checkpoint->has("b"));
  EXPECT_EQ(checkpoint->metadata(), nlohmann::json({{"format", "pt"}}));
  EXPECT_EQ(checkpoint->tensor("a").bytes, 8);
  expect_error(Errc::unsupported, "tensor 'b' has type I64",
               [&] { (void)checkpoint->tensor("b"); });
  expect_error(Errc::not_found, "has no tensor 'aa'", [&] { (void)checkpoint->tensor("aa"); });
}

TEST_F(Safetensors, RoundTripOfEveryType) {
  at::manual_seed(3);
  std::map<std::string, at::Tensor> tensors;
  for (const auto type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt,
                          at::kShort, at::kChar, at::kByte, at::kBool}) {
    const std::string name = c10::toString(type);
    tensors[name] = (at::rand({3, 5}) * 100).to(type);
    tensors[name + ".scalar"] = (at::rand({}) * 100).to(type);
    tensors[name + ".empty"] = at::empty({4, 0}, type);
    tensors[name + ".strided"] = (at::rand({7, 3}) * 100).to(type).t().narrow(1, 1, 5);
  }
  tensors["naïve \"quoted\" \n name"] = at::ones({1});
  const std::map<std::string, std::string> metadata{{"kind", "test"}, {"unicode", "μνήμη"}};
  const auto path = folder_ / "all.safetensors";
  write_safetensors(path, tensors, metadata);

  std::map<std::string, std::string> read_metadata;
  const auto read = read_safetensors(path, &read_metadata);
  EXPECT_EQ(read_metadata, metadata);
  ASSERT_EQ(read.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(read.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_EQ(read.at(name).sizes(), tensor.sizes()) << name;
    EXPECT_TRUE(at::equal(read.at(name), tensor)) << name;
  }
  // Written in the order of their width, so that views need no copy.
  const SafetensorsFile file(path);
  for (const auto& entry : file.entries()) {
    if (entry.dtype == "F32" || entry.dtype == "F64") {
      EXPECT_EQ(entry.begin % (entry.dtype == "F64" ? 8 : 4), 0) << entry.name;
    }
  }
}

TEST_F(Safetensors, WhatIsReadIsOwnMemory) {
  const auto path = folder_ / "own.safetensors";
  write_safetensors(path, {{"w", at::ones({8})}});
  auto first = read_safetensors(path).at("w");
  first.fill_(2);
  EXPECT_TRUE(at::equal(read_safetensors(path).at("w"), at::ones({8})));

  // A view of a checkpoint may be written to as well; the file keeps its content.
  to_tensor(open_checkpoint(path)->tensor("w")).fill_(3);
  EXPECT_TRUE(at::equal(read_safetensors(path).at("w"), at::ones({8})));
}

TEST_F(Safetensors, EmptySetOfTensors) {
  const auto path = folder_ / "none.safetensors";
  write_safetensors(path, {});
  EXPECT_TRUE(read_safetensors(path).empty());
}

TEST_F(Safetensors, ReplacesAtomicallyAndLeavesNothingBehind) {
  const auto path = folder_ / "w.safetensors";
  write_safetensors(path, {{"w", at::zeros({2})}});
  const auto old = open_checkpoint(path);
  write_safetensors(path, {{"w", at::ones({2})}});
  EXPECT_TRUE(at::equal(read_safetensors(path).at("w"), at::ones({2})));
  EXPECT_TRUE(at::equal(to_tensor(old->tensor("w")), at::zeros({2})))
      << "an open checkpoint keeps what it opened";
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1);

  expect_error(Errc::io, "cannot create",
               [&] { write_safetensors(folder_ / "no" / "w.safetensors", {}); });
  std::filesystem::create_directory(folder_ / "taken");
  write("taken/file", "");
  expect_error(Errc::io, "cannot replace", [&] { write_safetensors(folder_ / "taken", {}); });
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 2);
}

TEST_F(Safetensors, RefusesToWriteWhatItCannotHold) {
  const auto path = folder_ / "w.safetensors";
  expect_error(Errc::invalid, "tensor 'w' is undefined",
               [&] { write_safetensors(path, {{"w", at::Tensor()}}); });
  expect_error(Errc::invalid, "under that name",
               [&] { write_safetensors(path, {{"__metadata__", at::ones({1})}}); });
  expect_error(Errc::invalid, "under that name",
               [&] { write_safetensors(path, {{"", at::ones({1})}}); });
  expect_error(Errc::invalid, "UTF-8", [&] { write_safetensors(path, {{"\xff", at::ones({1})}}); });
  expect_error(Errc::invalid, "UTF-8",
               [&] { write_safetensors(path, {{"w", at::ones({1})}}, {{"k", "\xff"}}); });
  expect_error(Errc::unsupported, "ComplexFloat",
               [&] { write_safetensors(path, {{"w", at::ones({1}, at::kComplexFloat)}}); });
  expect_error(Errc::unsupported, "not dense",
               [&] { write_safetensors(path, {{"w", at::ones({2, 2}).to_sparse()}}); });
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

TEST_F(Safetensors, RefusesDamagedHeaders) {
  const std::string eight(8, '\0');
  expect_error(Errc::corrupt, "has 0 bytes and no header",
               [&] { SafetensorsFile{write("e.safetensors", "")}; });
  expect_error(Errc::corrupt, "states a header of 18446744073709551615 bytes",
               [&] { SafetensorsFile{write("e.safetensors", std::string(8, '\xff') + "{}")}; });
  expect_error(Errc::corrupt, "states a header of 3 bytes",
               [&] { SafetensorsFile{write("e.safetensors", raw<std::uint64_t>(3) + "{}")}; });
  refuses("", "", "not valid JSON");
  refuses("{\"a\":", "", "not valid JSON");
  refuses("[]", "", "not an object");
  refuses("{\"\xff\":1}", "", "not valid JSON");
  refuses(std::string(4000, '['), "", "levels");
  refuses(R"({"a":7})", "", "not described by an object");
  refuses(R"({"__metadata__":[]})", "", "metadata that is not an object");
  refuses(R"({"__metadata__":{"a":1}})", "", "not text");
  refuses(R"({"a":{"shape":[2],"data_offsets":[0,8]}})", eight, "no dtype");
  refuses(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", eight, "no valid shape");
  refuses(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", eight, "no valid shape");
  refuses(R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", eight, "no valid shape");
  refuses(R"({"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8]}})", eight,
          "no valid shape");
  refuses(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", eight,
          "no valid data_offsets");
  refuses(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", eight,
          "claims bytes 8 to 0");
  refuses(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,16]}})", eight,
          "claims bytes 0 to 16 of 8");
  refuses(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}})", eight, "do not come to");
  refuses(R"({"a":{"dtype":"F32","shape":[4611686018427387904,4,2],"data_offsets":[0,8]}})", eight,
          "do not come to");
  refuses(R"({"a":{"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}})", "",
          "do not come to");
  refuses(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", eight, "leaves a hole");
  refuses(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", eight,
          "4 bytes that belong to no tensor");
  refuses(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
          R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
          eight, "tensor 'b' overlaps");
  refuses(R"({"":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", eight, "a name of 0 bytes");
}

TEST_F(Safetensors, KnowsTypesItDoesNotRead) {
  const auto path =
      write("f8.safetensors",
            safetensors_bytes(R"({"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]},)"
                              R"("b":{"dtype":"F64","shape":[1],"data_offsets":[2,10]}})",
                              std::string(10, '\0')));
  const auto checkpoint = open_checkpoint(path);
  EXPECT_EQ(checkpoint->names(), (std::vector<std::string>{"a", "b"}));
  expect_error(Errc::unsupported, "tensor 'a' has type F8_E4M3; weights may be F32, F16 or BF16",
               [&] { (void)checkpoint->tensor("a"); });
  expect_error(Errc::unsupported, "tensor 'b' has type F64",
               [&] { (void)checkpoint->tensor("b"); });
  expect_error(Errc::unsupported, "F8_E4M3", [&] { read_safetensors(path); });
}

TEST_F(Safetensors, BooleansAreZeroOrOne) {
  const auto path =
      write("b.safetensors",
            safetensors_bytes(R"({"b":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}})",
                              std::string("\x00\x01\x80", 3)));
  const auto b = read_safetensors(path).at("b");
  EXPECT_TRUE(at::equal(b.view(at::kByte), at::tensor({0, 1, 1}, at::kByte)));
}

}  // namespace
}  // namespace mneme
