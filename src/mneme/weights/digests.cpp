#include "mneme/weights/digests.h"

#include "mneme/core/error.h"
#include "mneme/weights/atomic_file.h"
#include "mneme/weights/mapped_file.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <new>
#include <openssl/evp.h>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

namespace mneme {

struct Sha256::Context {
  EVP_MD_CTX* evp = EVP_MD_CTX_new();
  Context() {
    if (evp == nullptr) throw std::bad_alloc();
  }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context() { EVP_MD_CTX_free(evp); }
};

namespace {

void check_openssl(int succeeded) {
  if (succeeded != 1) {
    throw Error(Errc::unsupported,
                "libcrypto refuses SHA-256: check its configuration (FIPS, providers)");
  }
}

std::span<const std::byte> as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// Below this, reading the file costs less than looking after an entry.
constexpr std::int64_t kRememberedBytes = 1 << 20;
constexpr std::int64_t kSettledNs = 2'000'000'000;

std::optional<std::filesystem::path> cache_folder() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::filesystem::path(value == nullptr ? "" : value);
  };
  if (const auto cache = variable("XDG_CACHE_HOME"); cache.is_absolute()) {
    return cache / "mneme" / "digests";
  }
  if (const auto home = variable("HOME"); home.is_absolute()) {
    return home / ".cache" / "mneme" / "digests";
  }
  return std::nullopt;
}

std::string key_of(const FileIdentity& identity) {
  return std::to_string(identity.device) + "-" + std::to_string(identity.inode) + "-" +
         std::to_string(identity.size_bytes) + "-" + std::to_string(identity.mtime_ns);
}

// An entry proves itself: a damaged one, or one under another's name, must not pass for a digest.
std::string entry_of(const std::string& key, const std::string& digest) {
  return digest + " " + sha256_hex(key + " " + digest) + "\n";
}

std::optional<std::string> recall(const std::filesystem::path& folder, const std::string& key) {
  std::ifstream in(folder / key, std::ios::binary);
  std::array<char, 131> text{};  // one byte more than an entry has
  in.read(text.data(), text.size());
  const std::string entry(text.data(), static_cast<std::size_t>(in.gcount()));
  const auto digest = entry.substr(0, 64);
  if (entry != entry_of(key, digest)) return std::nullopt;
  return digest;
}

void remember(const std::filesystem::path& folder, const std::string& key,
              const std::string& digest) {
  try {
    std::error_code ignored;
    std::filesystem::create_directories(folder, ignored);
    AtomicFile file(folder / key);
    file.write(as_bytes(entry_of(key, digest)));
    file.commit(/*durable=*/false);
  } catch (const Error&) {
    // A read-only home or a full disk: the digest is computed again next time.
  }
}

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  check_openssl(EVP_DigestInit_ex(context_->evp, EVP_sha256(), nullptr));
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

Sha256& Sha256::update(std::span<const std::byte> bytes) {
  check_openssl(EVP_DigestUpdate(context_->evp, bytes.data(), bytes.size()));
  return *this;
}

Sha256& Sha256::update(std::string_view text) { return update(as_bytes(text)); }

std::string Sha256::hex() const {
  Context copy;
  check_openssl(EVP_MD_CTX_copy_ex(copy.evp, context_->evp));
  std::array<unsigned char, 32> digest{};
  check_openssl(EVP_DigestFinal_ex(copy.evp, digest.data(), nullptr));
  std::string text;
  for (const auto byte : digest) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

std::string sha256_hex(std::span<const std::byte> bytes) { return Sha256().update(bytes).hex(); }
std::string sha256_hex(std::string_view text) { return Sha256().update(text).hex(); }

std::string file_digest(const MappedFile& file) {
  const auto& identity = file.identity();
  const auto unchanged = [&] {
    if (file.identity_now() != identity) {
      throw Error(Errc::busy,
                  file.path().string() +
                      ": was written while it was in use; try again when it is complete");
    }
  };
  unchanged();
  const bool lasting =
      identity.size_bytes >= kRememberedBytes && identity.mtime_ns < now_ns() - kSettledNs;
  const auto folder = lasting ? cache_folder() : std::nullopt;
  const auto key = key_of(identity);
  if (folder) {
    if (auto digest = recall(*folder, key)) return *digest;
  }
  Sha256 hash;
  std::vector<std::byte> piece(1 << 20);
  for (std::int64_t offset = 0; offset < identity.size_bytes;
       offset += static_cast<std::int64_t>(piece.size())) {
    const auto size =
        std::min(static_cast<std::int64_t>(piece.size()), identity.size_bytes - offset);
    file.read(offset, std::span(piece).first(static_cast<std::size_t>(size)));
    hash.update(std::span(piece).first(static_cast<std::size_t>(size)));
  }
  auto digest = hash.hex();
  unchanged();
  if (folder) remember(*folder, key, digest);
  return digest;
}

std::string file_digest(const std::filesystem::path& path) { return file_digest(MappedFile(path)); }

}  // namespace mneme
