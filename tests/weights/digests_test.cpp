#include "mneme/weights/digests.h"

#include "mneme/weights/mapped_file.h"

#include "scratch.h"
#include <cstdlib>
#include <optional>
#include <sys/stat.h>

namespace mneme {
namespace {

using testing::expect_error;

TEST(Sha256, KnownAnswers) {
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_hex(std::string(1'000'000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, PiecesEqualTheWhole) {
  Sha256 sum;
  EXPECT_EQ(sum.hex(), sha256_hex(""));
  sum.update("a").update("");
  EXPECT_EQ(sum.hex(), sha256_hex("a"));
  auto moved = std::move(sum.update("bc"));
  EXPECT_EQ(moved.hex(), sha256_hex("abc"));
}

class FileDigest : public testing::ScratchTest {
 protected:
  void SetUp() override {
    FolderTest::SetUp();
    if (const char* old = std::getenv("XDG_CACHE_HOME")) old_ = old;
    ::setenv("XDG_CACHE_HOME", (folder_ / "cache").c_str(), 1);
  }
  void TearDown() override {
    if (old_) {
      ::setenv("XDG_CACHE_HOME", old_->c_str(), 1);
    } else {
      ::unsetenv("XDG_CACHE_HOME");
    }
    FolderTest::TearDown();
  }
  // A file large and old enough to be remembered.
  std::filesystem::path settled(char fill) {
    const auto path = write("w.bin", std::string(1 << 20, fill));
    std::filesystem::last_write_time(
        path, std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
    return path;
  }
  [[nodiscard]] std::vector<std::filesystem::path> entries() const {
    const auto store = folder_ / "cache" / "mneme" / "digests";
    if (!std::filesystem::exists(store)) return {};
    std::vector<std::filesystem::path> all;
    for (const auto& entry : std::filesystem::directory_iterator(store)) {
      all.push_back(entry.path());
    }
    return all;
  }

  std::optional<std::string> old_;
};

TEST_F(FileDigest, IsRememberedByWhatTheFileSystemSays) {
  const auto path = settled('a');
  const auto expected = sha256_hex(std::string(1 << 20, 'a'));
  EXPECT_EQ(file_digest(path), expected);
  ASSERT_EQ(entries().size(), 1U);
  EXPECT_EQ(file_digest(path), expected);

  // Same inode, size and time but other bytes: only the store can still know the old digest.
  const auto time = std::filesystem::last_write_time(path);
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary) << "b";
  std::filesystem::last_write_time(path, time);
  EXPECT_EQ(file_digest(path), expected);

  std::filesystem::last_write_time(path, time + std::chrono::nanoseconds(1000));
  EXPECT_EQ(file_digest(path), sha256_hex("b" + std::string((1 << 20) - 1, 'a')));
  EXPECT_EQ(entries().size(), 2U);
}

TEST_F(FileDigest, BrokenEntriesAreIgnoredAndReplaced) {
  const auto path = settled('a');
  const auto expected = file_digest(path);
  const auto entry = entries().at(0);
  std::ifstream in(entry, std::ios::binary);
  const std::string good{std::istreambuf_iterator<char>(in), {}};
  for (const std::string& bad :
       {std::string(), std::string("nonsense"), std::string(64, '0') + good.substr(64), good + "x",
        good.substr(0, 64), std::string(1000, '\xff')}) {
    std::ofstream(entry, std::ios::binary) << bad;
    EXPECT_EQ(file_digest(path), expected);
    std::ifstream again(entry, std::ios::binary);
    EXPECT_EQ((std::string{std::istreambuf_iterator<char>(again), {}}), good);
  }
  std::filesystem::remove(entry);
  std::filesystem::create_directory(entry);
  EXPECT_EQ(file_digest(path), expected);
}

TEST_F(FileDigest, WorksWithoutAStore) {
  const auto path = settled('a');
  write("plain", "");
  ::setenv("XDG_CACHE_HOME", (folder_ / "plain").c_str(), 1);
  EXPECT_EQ(file_digest(path), sha256_hex(std::string(1 << 20, 'a')));
  ::setenv("XDG_CACHE_HOME", "not/absolute", 1);
  const std::string home = std::getenv("HOME") == nullptr ? "" : std::getenv("HOME");
  ::setenv("HOME", (folder_ / "home").c_str(), 1);
  EXPECT_EQ(file_digest(path), sha256_hex(std::string(1 << 20, 'a')));
  EXPECT_TRUE(std::filesystem::exists(folder_ / "home" / ".cache" / "mneme" / "digests"));
  ::setenv("HOME", home.c_str(), 1);
}

TEST_F(FileDigest, FreshAndSmallFilesAreNotRemembered) {
  const auto fresh = write("fresh.bin", std::string(1 << 20, 'a'));
  EXPECT_EQ(file_digest(fresh), sha256_hex(std::string(1 << 20, 'a')));
  EXPECT_TRUE(entries().empty());
  const auto small = write("small.bin", "abc");
  std::filesystem::last_write_time(
      small, std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
  EXPECT_EQ(file_digest(small), sha256_hex("abc"));
  EXPECT_TRUE(entries().empty());
}

TEST_F(FileDigest, NoticesAFileThatChangedUnderTheMapping) {
  const auto path = write("w.bin", "abc");
  const MappedFile file(path);
  EXPECT_EQ(file_digest(file), sha256_hex("abc"));
  std::filesystem::last_write_time(
      path, std::filesystem::file_time_type::clock::now() + std::chrono::hours(1));
  expect_error(Errc::busy, "was written while it was in use", [&] { file_digest(file); });
}

TEST_F(FileDigest, SaysWhyAFileCannotBeRead) {
  expect_error(Errc::not_found, "absent", [&] { file_digest(folder_ / "absent"); });
  expect_error(Errc::invalid, "is a directory", [&] { file_digest(folder_); });
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  expect_error(Errc::invalid, "device or pipe", [&] { file_digest(folder_ / "pipe"); });
}

}  // namespace
}  // namespace mneme
