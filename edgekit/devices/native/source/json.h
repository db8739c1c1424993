// JSON values, read and written (RFC 8259). Numbers are doubles: a request has nothing beyond 2^53.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace edgekit {

// What cannot be done, in words for whoever asked.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Json {
 public:
  enum class Kind { null, boolean, number, text, list, table };
  using Entry = std::pair<std::string, Json>;

  Json() = default;
  Json(bool value) : kind_(Kind::boolean), number_(value ? 1 : 0) {}
  Json(double value) : kind_(Kind::number), number_(value) {}
  Json(int value) : Json(static_cast<double>(value)) {}
  Json(int64_t value) : Json(static_cast<double>(value)) {}
  Json(std::string value) : kind_(Kind::text), text_(std::move(value)) {}
  Json(const char* value) : Json(std::string(value)) {}
  Json(std::vector<Json> values) : kind_(Kind::list), list_(std::move(values)) {}

  static Json table(std::vector<Entry> entries = {}) {
    Json value;
    value.kind_ = Kind::table;
    value.table_ = std::move(entries);
    return value;
  }

  static Json parse(const std::string& text) {
    Reader reader{text};
    Json value = reader.value(0);
    reader.skip();
    if (reader.at != text.size()) throw Failure("JSON: something follows the value");
    return value;
  }

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::null; }
  bool truth() const { return kind_ == Kind::boolean && number_ != 0; }
  double number() const { return kind_ == Kind::number ? number_ : throw Failure("JSON: a number is missing"); }
  const std::string& text() const { return kind_ == Kind::text ? text_ : throw Failure("JSON: a text is missing"); }
  const std::vector<Json>& list() const { return kind_ == Kind::list ? list_ : throw Failure("JSON: a list is missing"); }
  const std::vector<Entry>& entries() const {
    return kind_ == Kind::table ? table_ : throw Failure("JSON: an object is missing");
  }

  // The value of a key; null where there is none.
  const Json& get(const std::string& key) const {
    static const Json none;
    if (kind_ != Kind::table) return none;
    for (const Entry& entry : table_)
      if (entry.first == key) return entry.second;
    return none;
  }

  const Json& at(const std::string& key) const {
    const Json& found = get(key);
    if (found.is_null()) throw Failure("the request lacks " + key);
    return found;
  }

  void set(const std::string& key, Json value) { table_.emplace_back(key, std::move(value)); }

  std::string dump() const {
    std::string out;
    write(out);
    return out;
  }

 private:
  struct Reader {
    const std::string& text;
    size_t at = 0;

    [[noreturn]] void fail() const { throw Failure("JSON: wrong at byte " + std::to_string(at)); }

    void skip() {
      while (at < text.size() && (text[at] == ' ' || text[at] == '\t' || text[at] == '\n' || text[at] == '\r')) ++at;
    }

    bool take(char wanted) {
      skip();
      if (at >= text.size() || text[at] != wanted) return false;
      ++at;
      return true;
    }

    void word(const char* wanted) {
      for (; *wanted; ++wanted, ++at)
        if (at >= text.size() || text[at] != *wanted) fail();
    }

    Json value(int depth) {
      if (depth > 100) fail();
      skip();
      if (at >= text.size()) fail();
      switch (text[at]) {
        case '{': return object(depth);
        case '[': return array(depth);
        case '"': return Json(string());
        case 't': word("true"); return Json(true);
        case 'f': word("false"); return Json(false);
        case 'n': word("null"); return Json();
        default: return Json(number());
      }
    }

    Json object(int depth) {
      std::vector<Entry> entries;
      ++at;
      if (take('}')) return Json::table();
      do {
        skip();
        if (at >= text.size() || text[at] != '"') fail();
        std::string key = string();
        if (!take(':')) fail();
        entries.emplace_back(std::move(key), value(depth + 1));
      } while (take(','));
      if (!take('}')) fail();
      return Json::table(std::move(entries));
    }

    Json array(int depth) {
      std::vector<Json> values;
      ++at;
      if (take(']')) return Json(std::move(values));
      do values.push_back(value(depth + 1));
      while (take(','));
      if (!take(']')) fail();
      return Json(std::move(values));
    }

    double number() {
      size_t begin = at;
      auto digits = [this] {
        size_t first = at;
        while (at < text.size() && text[at] >= '0' && text[at] <= '9') ++at;
        if (at == first) fail();
      };
      if (text[at] == '-') ++at;
      if (at < text.size() && text[at] == '0') ++at;
      else digits();
      if (at < text.size() && text[at] == '.') { ++at; digits(); }
      if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
        ++at;
        if (at < text.size() && (text[at] == '+' || text[at] == '-')) ++at;
        digits();
      }
      return std::strtod(text.substr(begin, at - begin).c_str(), nullptr);
    }

    unsigned hex() {
      unsigned code = 0;
      for (int digit = 0; digit < 4; ++digit, ++at) {
        if (at >= text.size()) fail();
        char c = text[at];
        code <<= 4;
        if (c >= '0' && c <= '9') code |= static_cast<unsigned>(c - '0');
        else if (c >= 'a' && c <= 'f') code |= static_cast<unsigned>(c - 'a' + 10);
        else if (c >= 'A' && c <= 'F') code |= static_cast<unsigned>(c - 'A' + 10);
        else fail();
      }
      return code;
    }

    std::string string() {
      std::string out;
      ++at;
      while (true) {
        if (at >= text.size() || static_cast<unsigned char>(text[at]) < 0x20) fail();
        char c = text[at++];
        if (c == '"') return out;
        if (c != '\\') { out += c; continue; }
        if (at >= text.size()) fail();
        switch (text[at++]) {
          case '"': out += '"'; break;
          case '\\': out += '\\'; break;
          case '/': out += '/'; break;
          case 'b': out += '\b'; break;
          case 'f': out += '\f'; break;
          case 'n': out += '\n'; break;
          case 'r': out += '\r'; break;
          case 't': out += '\t'; break;
          case 'u': escaped(out); break;
          default: --at; fail();
        }
      }
    }

    // A code point in UTF-8; beyond U+FFFF it is two escapes, a surrogate pair.
    void escaped(std::string& out) {
      unsigned code = hex();
      if (code >= 0xDC00 && code <= 0xDFFF) fail();
      if (code >= 0xD800 && code <= 0xDBFF) {
        if (text.compare(at, 2, "\\u") != 0) fail();
        at += 2;
        unsigned low = hex();
        if (low < 0xDC00 || low > 0xDFFF) fail();
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      }
      auto push = [&out](unsigned byte) { out += static_cast<char>(byte); };
      if (code < 0x80) {
        push(code);
      } else if (code < 0x800) {
        push(0xC0 | code >> 6);
        push(0x80 | (code & 0x3F));
      } else if (code < 0x10000) {
        push(0xE0 | code >> 12);
        push(0x80 | (code >> 6 & 0x3F));
        push(0x80 | (code & 0x3F));
      } else {
        push(0xF0 | code >> 18);
        push(0x80 | (code >> 12 & 0x3F));
        push(0x80 | (code >> 6 & 0x3F));
        push(0x80 | (code & 0x3F));
      }
    }
  };

  static void quote(const std::string& text, std::string& out) {
    out += '"';
    for (char c : text) {
      unsigned char byte = static_cast<unsigned char>(c);
      if (c == '"' || c == '\\') {
        out += '\\';
        out += c;
      } else if (byte < 0x20) {
        char escape[8];
        std::snprintf(escape, sizeof escape, "\\u%04x", byte);
        out += escape;
      } else {
        out += c;
      }
    }
    out += '"';
  }

  void write(std::string& out) const {
    switch (kind_) {
      case Kind::null: out += "null"; break;
      case Kind::boolean: out += number_ != 0 ? "true" : "false"; break;
      case Kind::number: write_number(out); break;
      case Kind::text: quote(text_, out); break;
      case Kind::list:
        out += '[';
        for (size_t index = 0; index < list_.size(); ++index) {
          if (index) out += ", ";
          list_[index].write(out);
        }
        out += ']';
        break;
      case Kind::table:
        out += '{';
        for (size_t index = 0; index < table_.size(); ++index) {
          if (index) out += ", ";
          quote(table_[index].first, out);
          out += ": ";
          table_[index].second.write(out);
        }
        out += '}';
        break;
    }
  }

  void write_number(std::string& out) const {
    char digits[32];
    if (!std::isfinite(number_)) throw Failure("JSON: no finite number");
    if (number_ == std::floor(number_) && std::fabs(number_) < 1e15) {
      std::snprintf(digits, sizeof digits, "%.0f", number_);
    } else {
      std::snprintf(digits, sizeof digits, "%.15g", number_);
      if (std::strtod(digits, nullptr) != number_) std::snprintf(digits, sizeof digits, "%.17g", number_);
    }
    out += digits;
  }

  Kind kind_ = Kind::null;
  double number_ = 0;
  std::string text_;
  std::vector<Json> list_;
  std::vector<Entry> table_;
};

}  // namespace edgekit
