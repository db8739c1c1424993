// onnxruntime by its C API, of which only the functions that the probe calls are declared.
//
// The library hands out a table of functions whose places never change: "the ordering of these fields MUST not change after that
// version has shipped since existing binaries depend on this ordering" (core/session/onnxruntime_c_api.cc; that file asserts that
// ReleaseCustomOpDomain, the last one of version 1, has the place 101). So no header and nothing to link with is needed, and one
// program runs with every onnxruntime since 1.5, whose table is the fifth version.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "files.h"

namespace edgekit {

struct OrtApiBase {
  const void* const* (*get_api)(uint32_t version);
  const char* (*version)();
};

struct OrtAllocator;
struct OrtEnv;
struct OrtMemoryInfo;
struct OrtSession;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtTensorInfo;
struct OrtValue;

// Each function by its place in the table.
class Ort {
 public:
  static constexpr uint32_t kVersion = 5;

  explicit Ort(const std::string& library) {
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) throw Failure(std::string("onnxruntime does not load: ") + dlerror());
    auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
    if (!base) throw Failure(library + ": no onnxruntime: OrtGetApiBase is missing");
    version = base()->version();
    table_ = base()->get_api(kVersion);
    if (!table_) throw Failure("onnxruntime " + version + " is older than 1.5");
    check(call<OrtStatus*(int, const char*, OrtEnv**)>(3)(4, "edgekit", &env));  // CreateEnv; 4: only what is fatal is logged
    check(call<OrtStatus*(OrtAllocator**)>(78)(&allocator));                      // GetAllocatorWithDefaultOptions
    check(call<OrtStatus*(int, int, OrtMemoryInfo**)>(69)(1, 0, &memory));        // CreateCpuMemoryInfo: arena, default
  }

  template <typename Function>
  Function* call(size_t place) const {
    return reinterpret_cast<Function*>(const_cast<void*>(table_[place]));
  }

  void check(OrtStatus* status) const {
    if (!status) return;
    std::string message = call<const char*(const OrtStatus*)>(2)(status);  // GetErrorMessage
    call<void(OrtStatus*)>(93)(status);                                    // ReleaseStatus
    throw Failure(message);
  }

  // A text that onnxruntime allocated.
  std::string take(char* text) const {
    std::string copy = text;
    check(call<OrtStatus*(OrtAllocator*, void*)>(76)(allocator, text));  // AllocatorFree
    return copy;
  }

  std::vector<std::string> providers() const {
    char** names = nullptr;
    int count = 0;
    check(call<OrtStatus*(char***, int*)>(125)(&names, &count));  // GetAvailableProviders
    std::vector<std::string> found(names, names + count);
    check(call<OrtStatus*(char**, int)>(126)(names, count));  // ReleaseAvailableProviders
    return found;
  }

  std::string version;
  OrtEnv* env = nullptr;
  OrtAllocator* allocator = nullptr;
  OrtMemoryInfo* memory = nullptr;

 private:
  const void* const* table_;
};

// `[runtime.onnxruntime]` of a target, as the request has it.
struct Options {
  int threads = 0;  // 0: onnxruntime decides
  std::vector<std::pair<std::string, std::string>> entries;

  static Options read(const Json& table, int cores) {
    Options options;
    for (const auto& [key, value] : table.entries()) {
      if (key == "threads") {
        options.threads = value.is_null() ? 0 : std::min(static_cast<int>(value.number()), cores);
      } else if (key == "config_entries") {
        for (const auto& [name, setting] : value.entries()) options.entries.emplace_back(name, setting.text());
      } else if (key == "disabled_optimizers") {
        std::string names;
        for (const Json& name : value.list()) names += (names.empty() ? "" : ";") + name.text();
        // kOrtSessionOptionsDisableSpecifiedOptimizers
        if (!names.empty()) options.entries.emplace_back("optimization.disable_specified_optimizers", names);
      } else if (key != "provider") {
        throw Failure("the native probe has no option " + key);
      }
    }
    return options;
  }
};

// onnxruntime's numbers of element types (ONNXTensorElementDataType) by NumPy's names.
inline int element_type(const std::string& kind) {
  static const std::map<std::string, int> known = {{"f4", 1}, {"u1", 2}, {"i1", 3}, {"u2", 4}, {"i2", 5}, {"i4", 6},
                                                   {"i8", 7}, {"b1", 9}, {"f2", 10}, {"f8", 11}, {"u4", 12}, {"u8", 13}};
  auto found = known.find(kind);
  if (found == known.end()) throw Failure("an input has the type " + kind + ", which the native probe does not know");
  return found->second;
}

using Prompt = std::map<std::string, Array>;

class Session {
 public:
  // profile: a file prefix for onnxruntime's profile; none where it is empty.
  Session(const Ort& ort, const std::string& path, const std::string& bytes, const Options& options, const std::string& profile = "")
      : ort_(ort) {
    OrtSessionOptions* settings = nullptr;
    ort.check(ort.call<OrtStatus*(OrtSessionOptions**)>(10)(&settings));
    try {
      ort.check(ort.call<OrtStatus*(OrtSessionOptions*, int)>(22)(settings, 4));                // SetSessionLogSeverityLevel
      ort.check(ort.call<OrtStatus*(OrtSessionOptions*, int)>(24)(settings, options.threads));  // SetIntraOpNumThreads
      for (const auto& [key, value] : options.entries)
        ort.check(ort.call<OrtStatus*(OrtSessionOptions*, const char*, const char*)>(130)(settings, key.c_str(), value.c_str()));
      if (!profile.empty()) ort.check(ort.call<OrtStatus*(OrtSessionOptions*, const char*)>(14)(settings, profile.c_str()));
      if (bytes.empty())  // CreateSession
        ort.check(ort.call<OrtStatus*(const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**)>(7)(ort.env, path.c_str(), settings, &session_));
      else  // CreateSessionFromArray
        ort.check(ort.call<OrtStatus*(const OrtEnv*, const void*, size_t, const OrtSessionOptions*, OrtSession**)>(8)(
            ort.env, bytes.data(), bytes.size(), settings, &session_));
    } catch (const Failure&) {
      ort.call<void(OrtSessionOptions*)>(100)(settings);
      throw;
    }
    ort.call<void(OrtSessionOptions*)>(100)(settings);  // ReleaseSessionOptions
    size_t count = 0;
    ort.check(ort.call<OrtStatus*(const OrtSession*, size_t*)>(30)(session_, &count));
    char* name = nullptr;
    for (size_t index = 0; index < count; ++index) {
      ort.check(ort.call<OrtStatus*(const OrtSession*, size_t, OrtAllocator*, char**)>(36)(session_, index, ort.allocator, &name));
      inputs_.push_back(ort.take(name));
    }
    ort.check(ort.call<OrtStatus*(const OrtSession*, size_t, OrtAllocator*, char**)>(37)(session_, 0, ort.allocator, &name));
    output_ = ort.take(name);
  }

  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() { ort_.call<void(OrtSession*)>(95)(session_); }

  // The first output's row for one prompt, given as a batch of one. Files that something else exported may want segment ids: zeros.
  std::vector<float> run(const Prompt& prompt) const { return values<float>(answer(prompt, true, kFloat)); }

  // As it is given, without a batch's axis; nothing is read of what comes out.
  void run_plain(const Prompt& prompt) const { answer(prompt, false, kNothing); }

  // The same, whose answer is whole numbers.
  std::vector<int32_t> run_whole(const Prompt& prompt) const { return values<int32_t>(answer(prompt, false, kInt32)); }

  std::string end_profile() const {
    char* path = nullptr;
    ort_.check(ort_.call<OrtStatus*(OrtSession*, OrtAllocator*, char**)>(110)(session_, ort_.allocator, &path));
    return ort_.take(path);
  }

 private:
  // onnxruntime's numbers of the types that are read of an answer.
  static constexpr int kNothing = 0, kFloat = 1, kInt32 = 6;

  template <typename Value>
  static std::vector<Value> values(const std::string& bytes) {
    std::vector<Value> found(bytes.size() / sizeof(Value));
    std::memcpy(found.data(), bytes.data(), bytes.size());
    return found;
  }

  // The first output's bytes, of elements of a type, each of four bytes; none where kNothing is wanted.
  std::string answer(const Prompt& prompt, bool batch, int wanted) const {
    std::vector<const char*> names;
    std::vector<OrtValue*> values;
    std::string zeros;
    auto release = [&] {
      for (OrtValue* value : values)
        if (value) ort_.call<void(OrtValue*)>(96)(value);
    };
    OrtValue* answer = nullptr;
    try {
      for (const std::string& name : inputs_) {
        auto found = prompt.find(name);
        bool segments = found == prompt.end() && name == "token_type_ids" && prompt.count("input_ids");
        if (segments) found = prompt.find("input_ids");
        if (found == prompt.end()) throw Failure("the model wants the input " + name + ", which the prompts do not have");
        const Array& array = found->second;
        if (segments) zeros.assign(array.bytes.size(), '\0');
        std::vector<int64_t> shape = array.shape;
        if (batch) shape.insert(shape.begin(), 1);
        const std::string& bytes = segments ? zeros : array.bytes;
        OrtValue* value = nullptr;  // CreateTensorWithDataAsOrtValue, over the array's own memory
        ort_.check(ort_.call<OrtStatus*(const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t, int, OrtValue**)>(49)(
            ort_.memory, const_cast<char*>(bytes.data()), bytes.size(), shape.data(), shape.size(), element_type(array.kind), &value));
        values.push_back(value);
        names.push_back(name.c_str());
      }
      const char* output = output_.c_str();
      ort_.check(ort_.call<OrtStatus*(OrtSession*, const void*, const char* const*, const OrtValue* const*, size_t, const char* const*, size_t, OrtValue**)>(9)(
          session_, nullptr, names.data(), values.data(), values.size(), &output, 1, &answer));
      values.push_back(answer);
      std::string row = wanted ? read(answer, wanted) : "";
      release();
      return row;
    } catch (const Failure&) {
      release();
      throw;
    }
  }

  std::string read(OrtValue* value, int wanted) const {
    OrtTensorInfo* info = nullptr;
    ort_.check(ort_.call<OrtStatus*(const OrtValue*, OrtTensorInfo**)>(65)(value, &info));  // GetTensorTypeAndShape
    int type = 0;
    size_t count = 0;
    ort_.check(ort_.call<OrtStatus*(const OrtTensorInfo*, int*)>(60)(info, &type));
    ort_.check(ort_.call<OrtStatus*(const OrtTensorInfo*, size_t*)>(64)(info, &count));
    ort_.call<void(OrtTensorInfo*)>(99)(info);
    if (type != wanted) throw Failure("the model's first output is no float32, which is all that the native probe reads");
    void* data = nullptr;
    ort_.check(ort_.call<OrtStatus*(OrtValue*, void**)>(51)(value, &data));  // GetTensorMutableData
    return {static_cast<const char*>(data), 4 * count};
  }

  const Ort& ort_;
  OrtSession* session_ = nullptr;
  std::vector<std::string> inputs_;
  std::string output_;
};

}  // namespace edgekit
