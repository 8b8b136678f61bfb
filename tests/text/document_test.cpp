#include "mneme/text/document.h"

#include "mneme/core/error.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <random>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

namespace mneme {
namespace {

namespace fs = std::filesystem;
using namespace std::string_literals;

class DocumentTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("mneme_document_test_" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  fs::path write(const std::string& name, const std::string& bytes) {
    const auto path = folder_ / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  fs::path folder_;
};

template <class F>
std::string refusal(F&& f, Errc code) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos);
    return e.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

TEST_F(DocumentTest, KeepsTextByteForByte) {
  const auto bytes = "\xEF\xBB\xBFline one\r\nzwei \xC3\xA4\n\n\xF0\x9F\x98\x80"s;
  const auto d = read_document(write("a.txt", bytes), "a.txt");
  EXPECT_EQ(d.text, bytes);
  EXPECT_EQ(d.label, "a.txt");
  EXPECT_EQ(d.title, "a.txt");
  EXPECT_EQ(d.media, Media::text);
  EXPECT_EQ(d.version, 1);
  EXPECT_EQ(d.content_hash.size(), 64U);
  EXPECT_EQ(document_from_text("b", "abc").content_hash,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST_F(DocumentTest, TitleAndMediaFollowFromTextAndName) {
  EXPECT_EQ(document_from_text("notes/x.md", "intro\n# The  title \n## no").title, "The  title");
  EXPECT_EQ(document_from_text("notes/x.md", "no heading").title, "x.md");
  EXPECT_EQ(document_from_text("src/a.CPP", "# not a title").media, Media::code);
  EXPECT_EQ(document_from_text("src/a.CPP", "# not a title").title, "a.CPP");
  EXPECT_EQ(document_from_text("src/Makefile", "all:").media, Media::code);
  EXPECT_EQ(document_from_text("a.b/c", "text").media, Media::text);
  EXPECT_EQ(media_name(Media::clip), "clip");
}

TEST_F(DocumentTest, SaysWhatIsWrongInOneLine) {
  EXPECT_NE(
      refusal([&] { read_document(folder_ / "none.txt"); }, Errc::not_found).find("no such file"),
      std::string::npos);
  EXPECT_NE(refusal([&] { read_document(folder_); }, Errc::invalid).find("folder"),
            std::string::npos);
  EXPECT_NE(refusal([&] { read_document(write("e.txt", "")); }, Errc::invalid).find("empty"),
            std::string::npos);
  EXPECT_NE(
      refusal([&] { read_document(write("w.txt", "\xEF\xBB\xBF \n\t\xC2\xA0")); }, Errc::invalid)
          .find("white space"),
      std::string::npos);
  EXPECT_NE(
      refusal([&] { read_document(write("b.txt", "text\0more"s)); }, Errc::invalid).find("byte 4"),
      std::string::npos);
  EXPECT_NE(refusal([&] { read_document(write("p.txt", "%PDF-1.4 x")); }, Errc::invalid)
                .find("pdftotext"),
            std::string::npos);
  EXPECT_NE(refusal([&] { read_document(write("u.txt", "\xFF\xFEh\0i\0"s)); }, Errc::invalid)
                .find("UTF-16"),
            std::string::npos);
  const auto latin =
      refusal([&] { read_document(write("l.txt", "one\ntwo\ncaf\xE9 three")); }, Errc::invalid);
  EXPECT_NE(latin.find("0xE9 at byte 11 (line 3)"), std::string::npos) << latin;
  refusal([&] { document_from_text("", "x"); }, Errc::usage);
  refusal([&] { document_from_text("a\nb", "x"); }, Errc::usage);
  refusal([&] { document_from_text("\x1B[31m", "x"); }, Errc::usage);
  refusal([&] { document_from_text("\xFF", "x"); }, Errc::usage);
  refusal([&] { document_from_text(std::string(5000, 'a'), "x"); }, Errc::usage);
}

TEST_F(DocumentTest, UnreadableFileIsRefusedUnlessRoot) {
  if (::geteuid() == 0) GTEST_SKIP() << "root reads everything";
  const auto path = write("secret.txt", "text");
  ::chmod(path.c_str(), 0);
  refusal([&] { read_document(path); }, Errc::io);
  ASSERT_EQ(list_documents(folder_).skipped.size(), 1U);
}

TEST_F(DocumentTest, EndlessDeviceIsRefusedAtItsFirstZeroByte) {
  if (!fs::exists("/dev/zero")) GTEST_SKIP();
  refusal([&] { read_document("/dev/zero"); }, Errc::invalid);
}

TEST_F(DocumentTest, ReadsAPipeToItsEnd) {
  const auto pipe = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::thread writer([&] { std::ofstream(pipe) << "through " << std::flush << "a pipe"; });
  EXPECT_EQ(read_document(pipe).text, "through a pipe");
  writer.join();
}

TEST_F(DocumentTest, RefusesWhatIsTooLargeWithoutReadingItWhole) {
  const auto path = write("big.txt", "");
  ASSERT_EQ(::truncate(path.c_str(), kMaxDocumentBytes + 10), 0);
  // A sparse file reads as zero bytes, so it is binary here and too large in a listing.
  refusal([&] { read_document(path); }, Errc::invalid);
  const auto listing = list_documents(folder_);
  ASSERT_EQ(listing.skipped.size(), 1U);
  EXPECT_EQ(listing.skipped[0].reason, "larger than 1 GiB");
}

TEST(Utf8, FindsTheFirstInvalidByte) {
  EXPECT_EQ(find_invalid_utf8(""), -1);
  EXPECT_EQ(find_invalid_utf8("plain, long enough for eight"), -1);
  EXPECT_EQ(find_invalid_utf8("\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80"), -1);
  EXPECT_EQ(find_invalid_utf8("12345678\x80"), 8);
  EXPECT_EQ(find_invalid_utf8("a\xC0\xAF"), 1);         // overlong
  EXPECT_EQ(find_invalid_utf8("ab\xED\xA0\x80"), 2);    // surrogate
  EXPECT_EQ(find_invalid_utf8("\xF4\x90\x80\x80"), 0);  // above U+10FFFF
  EXPECT_EQ(find_invalid_utf8("abc\xE2\x82"), 3);       // cut short
}

TEST_F(DocumentTest, ListsAFolderAndReportsEverySkip) {
  write("b.txt", "text");
  write("a/z.md", "text");
  write("a/.hidden", "text");
  write(".git/config", "text");
  write("c.bin", "a\0b"s);
  write("d.txt", "");
  write("e.txt", "\xE9");
  std::string long_text(65535, 'x');
  write("f.txt", long_text + "\xC3\xA4");  // a character across the border of what is looked at
  fs::create_directory_symlink(folder_ / "a", folder_ / "g");
  fs::create_symlink("nowhere", folder_ / "h");
  fs::create_symlink("b.txt", folder_ / "i.txt");
  const auto listing = list_documents(folder_);
  std::vector<std::string> files, skipped;
  for (const auto& f : listing.files) files.push_back(f.lexically_relative(folder_).string());
  for (const auto& s : listing.skipped)
    skipped.push_back(s.path.lexically_relative(folder_).string() + ": " + s.reason.substr(0, 15));
  EXPECT_EQ(files, (std::vector<std::string>{"a/z.md", "b.txt", "f.txt", "i.txt"}));
  EXPECT_EQ(skipped, (std::vector<std::string>{".git: hidden", "a/.hidden: hidden", "c.bin: binary",
                                               "d.txt: empty", "e.txt: is not valid UT",
                                               "g: a link to a fol", "h: a link that lea"}));
  EXPECT_EQ(list_documents(folder_ / "b.txt").files.size(), 1U);
  refusal([&] { list_documents(folder_ / "none"); }, Errc::not_found);
}

TEST(Labels, TwoOfTheSameAreRefused) {
  check_labels(std::vector<std::string>{"a", "b", "A"});
  EXPECT_THROW(check_labels(std::vector<std::string>{"a", "b", "a"}), Error);
}

TEST(Lines, AgreeWithCounting) {
  std::mt19937 random(1);
  std::string text;
  for (int i = 0; i < 20000; ++i) text += random() % 40 == 0 ? '\n' : 'x';
  const LineIndex index(text);
  std::int64_t line = 1;
  for (std::size_t i = 0; i < text.size(); ++i) {
    ASSERT_EQ(index.line_of(static_cast<std::int64_t>(i)), line) << i;
    if (text[i] == '\n') ++line;
  }
  EXPECT_EQ(LineIndex("a\nb\n").lines(), 2);
  EXPECT_EQ(LineIndex("a\nb").lines(), 2);
  EXPECT_EQ(LineIndex("").lines(), 1);
  EXPECT_EQ(LineIndex("a\nb\n").line_of(1), 1);
  EXPECT_EQ(LineIndex("a\nb\n").line_of(99), 2);
  EXPECT_EQ(LineIndex("a\nb").line_of(-5), 1);
}

TEST(Excerpt, IsAVerbatimPartCutBetweenWords) {
  EXPECT_EQ(excerpt("  one two three ", 0, 100, 100), "one two three");
  EXPECT_EQ(excerpt("one two three", 0, 13, 9), "one two");
  EXPECT_EQ(excerpt("one two three", 0, 13, 7), "one two");
  EXPECT_EQ(excerpt("one two three", 0, 13, 2), "on");
  EXPECT_EQ(excerpt("one two three", 4, 7, 50), "two");
  EXPECT_EQ(excerpt("\xC3\xA4\xC3\xB6\xC3\xBC", 1, 5, 10),
            "\xC3\xB6");  // borders moved to characters
  EXPECT_EQ(excerpt("\xC3\xA4\xC3\xB6\xC3\xBC", 0, 6, 2), "\xC3\xA4\xC3\xB6");
  EXPECT_EQ(excerpt("abc", 2, 1, 10), "");
  EXPECT_EQ(excerpt("abc", -5, 99, 0), "");
  EXPECT_EQ(excerpt("a\xC2\xA0", 0, 3, 10), "a");
}

TEST(Excerpt, StaysValidWhateverTheRange) {
  const std::string text =
      "Gr\xC3\xBC\xC3\x9F"
      "e \xE2\x82\xAC 5 \xF0\x9F\x98\x80\xF0\x9F\x98\x80 ende";
  for (std::int64_t a = -1; a <= static_cast<std::int64_t>(text.size()) + 1; ++a) {
    for (std::int64_t b = a; b <= static_cast<std::int64_t>(text.size()) + 1; ++b) {
      for (std::int64_t n : {0, 1, 3, 8, 50}) {
        const auto e = excerpt(text, a, b, n);
        ASSERT_EQ(find_invalid_utf8(e), -1);
        ASSERT_NE(text.find(e), std::string::npos);
      }
    }
  }
}

}  // namespace
}  // namespace mneme
