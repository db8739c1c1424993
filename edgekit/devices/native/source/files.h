// Files: read whole, hashed (SHA-256, FIPS 180-4), and .npz archives of arrays (zip without compression, .npy inside).
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <sys/stat.h>
#include <vector>

#include "json.h"

namespace edgekit {

inline std::string read_file(const std::string& path) {
  std::unique_ptr<FILE, int (*)(FILE*)> stream(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!stream) throw Failure(path + ": " + std::strerror(errno));
  std::string content;
  char part[1 << 16];
  size_t count;
  while ((count = std::fread(part, 1, sizeof part, stream.get())) > 0) content.append(part, count);
  if (std::ferror(stream.get())) throw Failure(path + ": cannot be read");
  return content;
}

// The content; empty where there is no such file, as of what a system may not tell.
inline std::string read_or_empty(const std::string& path) {
  try {
    return read_file(path);
  } catch (const Failure&) {
    return "";
  }
}

inline void write_file(const std::string& path, const std::string& content) {
  for (size_t slash = path.find('/', 1); slash != std::string::npos; slash = path.find('/', slash + 1))
    mkdir(path.substr(0, slash).c_str(), 0777);
  FILE* stream = std::fopen(path.c_str(), "wb");
  if (!stream) throw Failure(path + ": " + std::strerror(errno));
  bool whole = std::fwrite(content.data(), 1, content.size(), stream) == content.size();
  whole = std::fclose(stream) == 0 && whole;
  if (!whole) throw Failure(path + ": " + std::strerror(errno));
}

class Sha256 {
 public:
  void update(const void* content, size_t size) {
    const unsigned char* bytes = static_cast<const unsigned char*>(content);
    length_ += size;
    while (size--) {
      block_[filled_++] = *bytes++;
      if (filled_ == 64) {
        mix();
        filled_ = 0;
      }
    }
  }

  std::string hex() {
    uint64_t bits = length_ * 8;
    unsigned char one = 0x80, zero = 0, tail[8];
    update(&one, 1);
    while (filled_ != 56) update(&zero, 1);
    for (int index = 0; index < 8; ++index) tail[index] = static_cast<unsigned char>(bits >> (56 - 8 * index));
    update(tail, 8);
    char text[65];
    for (int index = 0; index < 8; ++index) std::snprintf(text + 8 * index, 9, "%08x", state_[index]);
    return text;
  }

 private:
  static uint32_t turn(uint32_t word, int by) { return word >> by | word << (32 - by); }

  void mix() {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
        0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
        0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
        0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
        0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
        0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[64];
    for (int i = 0; i < 16; ++i)
      w[i] = static_cast<uint32_t>(block_[4 * i]) << 24 | static_cast<uint32_t>(block_[4 * i + 1]) << 16 |
             static_cast<uint32_t>(block_[4 * i + 2]) << 8 | block_[4 * i + 3];
    for (int i = 16; i < 64; ++i) {
      uint32_t s0 = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3;
      uint32_t s1 = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = state_[0], b = state_[1], c = state_[2], d = state_[3], e = state_[4], f = state_[5], g = state_[6], h = state_[7];
    for (int i = 0; i < 64; ++i) {
      uint32_t t1 = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + k[i] + w[i];
      uint32_t t2 = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g; g = f; f = e; e = d + t1; d = c; c = b; b = a; a = t1 + t2;
    }
    const uint32_t sums[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state_[i] += sums[i];
  }

  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  unsigned char block_[64];
  size_t filled_ = 0;
  uint64_t length_ = 0;
};

inline std::string sha256(const std::string& path) {
  std::unique_ptr<FILE, int (*)(FILE*)> stream(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!stream) throw Failure(path + ": " + std::strerror(errno));
  Sha256 digest;
  char part[1 << 16];
  size_t count;
  while ((count = std::fread(part, 1, sizeof part, stream.get())) > 0) digest.update(part, count);
  if (std::ferror(stream.get())) throw Failure(path + ": cannot be read");
  return digest.hex();
}

// An array as NumPy writes it: kind is its type without the byte order ("i8", "f4"); C order, little-endian.
struct Array {
  std::string kind;
  std::vector<int64_t> shape;
  std::string bytes;

  size_t width() const { return std::strtoul(kind.c_str() + 1, nullptr, 10); }

  int64_t count() const {
    int64_t product = 1;
    for (int64_t extent : shape) product *= extent;
    return product;
  }

  std::vector<int64_t> integers() const {
    if (kind == "i4") {
      std::vector<int32_t> small(bytes.size() / 4);
      std::memcpy(small.data(), bytes.data(), bytes.size());
      return {small.begin(), small.end()};
    }
    if (kind != "i8") throw Failure("an array has the type " + kind + ", not i8");
    std::vector<int64_t> values(bytes.size() / 8);
    std::memcpy(values.data(), bytes.data(), values.size() * 8);
    return values;
  }
};

// https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
inline Array read_npy(const std::string& content, const std::string& where) {
  auto wrong = [&where] { return Failure(where + ": no array in NumPy's format"); };
  if (content.size() < 12 || content.compare(0, 6, "\x93NUMPY") != 0) throw wrong();
  size_t begin = content[6] == 1 ? 10 : 12, size = 0;
  for (size_t index = begin; index-- > 8;) size = size << 8 | static_cast<unsigned char>(content[index]);
  if (begin + size > content.size()) throw wrong();
  std::string header = content.substr(begin, size);
  auto after = [&](const char* key) {
    size_t found = header.find(key);
    if (found == std::string::npos) throw wrong();
    return found + std::strlen(key);
  };
  Array array;
  size_t type = after("'descr': '");
  char order = header[type];
  array.kind = header.substr(type + 1, header.find('\'', type) - type - 1);
  if (order == '>' || header.compare(after("'fortran_order': "), 5, "False") != 0) throw wrong();
  size_t open = after("'shape': ("), close = header.find(')', open);
  for (size_t at = open; at < close;) {
    char* end = nullptr;
    long long extent = std::strtoll(header.c_str() + at, &end, 10);
    if (end == header.c_str() + at) break;
    array.shape.push_back(extent);
    at = static_cast<size_t>(end - header.c_str()) + 1;
  }
  array.bytes = content.substr(begin + size);
  if (array.bytes.size() != static_cast<size_t>(array.count()) * array.width()) throw wrong();
  return array;
}

inline uint64_t little(const std::string& content, size_t at, int bytes) {
  if (at + static_cast<size_t>(bytes) > content.size()) throw Failure("a zip archive is cut");
  uint64_t value = 0;
  for (int index = bytes; index-- > 0;) value = value << 8 | static_cast<unsigned char>(content[at + static_cast<size_t>(index)]);
  return value;
}

// Section numbers are those of PKWARE's APPNOTE 6.3.10. An .npz has no compressed members unless one asks NumPy for that.
inline std::map<std::string, Array> read_npz(const std::string& path) {
  std::string content = read_file(path);
  size_t end = content.rfind("PK\x05\x06");  // 4.3.16
  if (end == std::string::npos) throw Failure(path + ": no zip archive, or a part of one");
  std::map<std::string, Array> arrays;
  uint64_t count = little(content, end + 10, 2), at = little(content, end + 16, 4);
  for (uint64_t index = 0; index < count; ++index) {  // 4.3.12
    if (little(content, at, 4) != 0x02014b50 || little(content, at + 10, 2) != 0) throw Failure(path + ": a compressed or damaged member");
    uint64_t size = little(content, at + 24, 4), local = little(content, at + 42, 4);
    uint64_t name_size = little(content, at + 28, 2), extra = little(content, at + 30, 2), comment = little(content, at + 32, 2);
    std::string name = content.substr(at + 46, name_size);
    if (size == 0xFFFFFFFF) {  // 4.5.3: it comes first in the extra field of what is that large
      size = little(content, at + 46 + name_size + 4, 8);
    }
    uint64_t begin = local + 30 + little(content, local + 26, 2) + little(content, local + 28, 2);
    if (begin + size > content.size()) throw Failure(path + ": a zip archive that is cut");
    if (name.size() > 4 && name.compare(name.size() - 4, 4, ".npy") == 0) name.resize(name.size() - 4);
    arrays[name] = read_npy(content.substr(begin, size), path + ": " + name);
    at += 46 + name_size + extra + comment;
  }
  return arrays;
}

inline uint32_t crc32(const std::string& content) {
  uint32_t table[256], crc = 0xFFFFFFFF;
  for (uint32_t index = 0; index < 256; ++index) {
    uint32_t value = index;
    for (int bit = 0; bit < 8; ++bit) value = value & 1 ? value >> 1 ^ 0xEDB88320 : value >> 1;  // 4.4.7
    table[index] = value;
  }
  for (char c : content) crc = table[(crc ^ static_cast<unsigned char>(c)) & 0xFF] ^ crc >> 8;
  return ~crc;
}

// Numbers as an array of one axis.
template <typename Value>
Array array_of(const char* kind, const std::vector<Value>& values) {
  return {kind, {static_cast<int64_t>(values.size())}, std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(Value))};
}

// Arrays by their names as an .npz.
inline std::string npz_of(const std::vector<std::pair<std::string, Array>>& arrays) {
  auto number = [](uint64_t value, int bytes) {
    std::string out;
    for (int index = 0; index < bytes; ++index) out += static_cast<char>(value >> (8 * index));
    return out;
  };
  std::string content, directory;
  for (const auto& [name, array] : arrays) {
    std::string shape;
    for (int64_t extent : array.shape) shape += std::to_string(extent) + ",";
    std::string header = std::string("{'descr': '") + (array.width() == 1 ? '|' : '<') + array.kind + "', 'fortran_order': False, 'shape': (" + shape + "), }";
    header.append(63 - (10 + header.size()) % 64, ' ');
    header += '\n';
    const std::string npy = std::string("\x93NUMPY\x01\x00", 8) + number(header.size(), 2) + header + array.bytes, file = name + ".npy";
    // Version to extract, flags, method (stored), time, date (1980-01-01), checksum, both sizes, size of the name, no extra field.
    const std::string shared = number(20, 2) + number(0, 2) + number(0, 2) + number(0, 2) + number(33, 2) + number(crc32(npy), 4) +
                               number(npy.size(), 4) + number(npy.size(), 4) + number(file.size(), 2) + number(0, 2);
    directory += "PK\x01\x02" + number(20, 2) + shared + number(0, 2) + number(0, 2) + number(0, 2) + number(0, 4) + number(content.size(), 4) + file;
    content += "PK\x03\x04" + shared + file + npy;
  }
  return content + directory + "PK\x05\x06" + number(0, 4) + number(arrays.size(), 2) + number(arrays.size(), 2) + number(directory.size(), 4) +
         number(content.size(), 4) + number(0, 2);
}

}  // namespace edgekit
