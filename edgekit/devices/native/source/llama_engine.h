// A decoder in llama.cpp, by llama.h of the version that the library beside the program has: edgekit.runtimes.llamacpp.
//
// libllama.so is opened when the program runs: one that has none of it answers for onnxruntime alone.
#pragma once

#include <dlfcn.h>
#include <llama.h>

#include <memory>

#include "machine.h"

namespace edgekit {

// A line of llama.cpp's log: where others raise or tell, it logs. The host reads of it where the layers lie and what they take.
using Logged = std::pair<int, std::string>;

class Llama {
 public:
  explicit Llama(const std::string& library) : handle_(open(library)) {
    listen();
    backend_init();
    supports_gpu_offload();  // which makes the backends look
  }

  // Forget what was logged, and listen.
  void listen() const {
    log.clear();
    log_set([](ggml_log_level level, const char* text, void* to) {
      auto& lines = *static_cast<std::vector<Logged>*>(to);
      if (level == GGML_LOG_LEVEL_CONT && !lines.empty()) {
        lines.back().second += text;
      } else if (lines.size() < 8192) {
        lines.emplace_back(level, text);
      }
    }, &log);
  }

  // The first error in the log says why, those behind it say who else failed for it.
  Failure failure(const std::string& what) const {
    std::string why = "it does not say why";
    for (int wanted : {GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR})
      for (size_t index = log.size(); index-- > 0;)
        if (log[index].first == wanted) why = stripped(log[index].second);
    return Failure(what + ": " + why);
  }

  std::string version() const { return std::string(EDGEKIT_LLAMA) + " (ggml " + ggml() + ")"; }

  mutable std::vector<Logged> log;

 private:
  static void* open(const std::string& library) {
    void* found = dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL);
    return found ? found : throw Failure(std::string("llama.cpp does not load: ") + dlerror());
  }

  template <typename Function>
  Function* find(const char* name) const {
    void* found = dlsym(handle_, name);
    if (!found) throw Failure(std::string("llama.cpp there lacks ") + name + ": it is of another version than this program");
    return reinterpret_cast<Function*>(found);
  }

  void* handle_;

 public:
#define EDGEKIT_FUNCTION(ours, name) decltype(::name)* ours = find<decltype(::name)>(#name)
  EDGEKIT_FUNCTION(backend_init, llama_backend_init);
  EDGEKIT_FUNCTION(log_set, llama_log_set);
  EDGEKIT_FUNCTION(supports_gpu_offload, llama_supports_gpu_offload);
  EDGEKIT_FUNCTION(model_defaults, llama_model_default_params);
  EDGEKIT_FUNCTION(context_defaults, llama_context_default_params);
  EDGEKIT_FUNCTION(load_model, llama_model_load_from_file);
  EDGEKIT_FUNCTION(free_model, llama_model_free);
  EDGEKIT_FUNCTION(make_context, llama_init_from_model);
  EDGEKIT_FUNCTION(free_context, llama_free);
  EDGEKIT_FUNCTION(vocabulary_of, llama_model_get_vocab);
  EDGEKIT_FUNCTION(count_tokens, llama_vocab_n_tokens);
  EDGEKIT_FUNCTION(longest, llama_model_n_ctx_train);
  EDGEKIT_FUNCTION(layers, llama_model_n_layer);
  EDGEKIT_FUNCTION(bytes, llama_model_size);
  EDGEKIT_FUNCTION(parameters, llama_model_n_params);
  EDGEKIT_FUNCTION(system_info, llama_print_system_info);
  EDGEKIT_FUNCTION(memory_of, llama_get_memory);
  EDGEKIT_FUNCTION(clear_memory, llama_memory_clear);
  EDGEKIT_FUNCTION(decode, llama_decode);
  EDGEKIT_FUNCTION(synchronize, llama_synchronize);
  EDGEKIT_FUNCTION(logits, llama_get_logits);
  EDGEKIT_FUNCTION(ggml, ggml_version);
#undef EDGEKIT_FUNCTION
};

// `[runtime.llama-cpp]` of a target, as the request has it; what is null there has its default.
struct LlamaOptions {
  int threads = 0, threads_batch = 0, context = 0, batch = 512, gpu_layers = 0;
  std::string kv_k = "f16", kv_v = "f16", attention = "auto";

  static LlamaOptions read(const Json& table, int cores) {
    LlamaOptions found;
    const std::map<std::string, int*> numbers = {{"threads", &found.threads}, {"threads_batch", &found.threads_batch}, {"context", &found.context},
                                                 {"batch", &found.batch}, {"gpu_layers", &found.gpu_layers}};
    const std::map<std::string, std::string*> texts = {{"kv_k", &found.kv_k}, {"kv_v", &found.kv_v}, {"flash_attention", &found.attention}};
    for (const auto& [key, value] : table.entries()) {
      if (numbers.count(key)) {
        if (!value.is_null()) *numbers.at(key) = static_cast<int>(value.number());
      } else if (texts.count(key)) {
        if (!value.is_null()) *texts.at(key) = value.text();
      } else if (key != "pooling" && key != "provider") {
        throw Failure("the native probe has no option " + key);
      }
    }
    // More threads than cores would wait for each other.
    found.threads = found.threads ? std::min(found.threads, cores) : cores;
    found.threads_batch = found.threads_batch ? std::min(found.threads_batch, cores) : found.threads;
    // Flash attention would round a cache of float32 to 16 bits (llama-graph.cpp, build_attn_mha).
    if (found.attention == "auto" && found.kv_k == "f32" && found.kv_v == "f32") found.attention = "off";
    return found;
  }

  LlamaOptions with_threads(int count) const {
    LlamaOptions changed = *this;
    changed.threads = changed.threads_batch = count;
    return changed;
  }
};

// A decoder that keeps what it was fed: edgekit.runtimes.llamacpp.generation.Generator, in the same steps.
class Generator {
 public:
  Generator(const Llama& llama, const std::string& file, const LlamaOptions& options) : llama_(llama), options_(options), file_(file) {
    llama.listen();
    llama_model_params settings = llama.model_defaults();
    ggml_backend_dev_t none[1] = {nullptr};
    settings.n_gpu_layers = options.gpu_layers;
    if (options.gpu_layers == 0) settings.devices = none;
    model_.reset(llama.load_model(file.c_str(), settings));
    if (!model_) throw llama.failure(file + ": llama.cpp does not load it");
    loading_ = llama.log;
    vocabulary = llama.count_tokens(llama.vocabulary_of(model_.get()));
    const int longest = llama.longest(model_.get());
    context = options.context ? options.context : longest;
    if (context > longest && longest > 0)
      throw Failure(file + ": " + std::to_string(context) + " tokens of context are needed, the model has " + std::to_string(longest));
    room_ = std::min(options.context ? options.context : 512, context);
    reserve();
    if (!llama.memory_of(context_.get())) throw Failure(file + ": an encoder, which does not generate");
  }

  void clear() {
    llama_.clear_memory(llama_.memory_of(context_.get()), false);
    fed_.clear();
  }

  // Feed tokens behind those before; the logits [n, vocabulary] of those from the index `from` on.
  std::vector<float> logits(const std::vector<int32_t>& ids, size_t from) {
    const size_t wanted = ids.size() - std::min(from, ids.size());
    make_room(fed_.size() + ids.size(), wanted);
    std::vector<float> found;
    found.reserve(wanted * static_cast<size_t>(vocabulary));
    for (size_t begin = 0; begin < ids.size(); begin += static_cast<size_t>(batch_)) {
      const size_t end = std::min(begin + static_cast<size_t>(batch_), ids.size());
      std::vector<int32_t> tokens(ids.begin() + static_cast<long>(begin), ids.begin() + static_cast<long>(end));
      std::vector<int8_t> marked(tokens.size(), 0);
      size_t rows = 0;
      for (size_t index = begin; index < end; ++index)
        if (index >= from) marked[index - begin] = 1, ++rows;
      llama_batch step = {};
      step.n_tokens = static_cast<int32_t>(tokens.size());
      step.token = tokens.data();
      step.logits = marked.data();
      llama_.log.clear();
      if (llama_.decode(context_.get(), step) != 0) throw llama_.failure(file_ + ": llama.cpp does not take " + std::to_string(tokens.size()) + " tokens");
      llama_.synchronize(context_.get());
      const float* first = llama_.logits(context_.get());
      if (rows) found.insert(found.end(), first, first + rows * static_cast<size_t>(vocabulary));
    }
    fed_.insert(fed_.end(), ids.begin(), ids.end());
    return found;
  }

  // The likeliest token behind these; the first of several that are alike, as NumPy's argmax.
  int32_t likeliest(const std::vector<int32_t>& ids) {
    const std::vector<float> row = logits(ids, ids.size() - 1);
    return static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
  }

  // What the host makes `work` of: edgekit.runtimes.llamacpp.loaded.work_of.
  Json work() const {
    auto lines = [](const std::vector<Logged>& log) {
      std::vector<Json> found;
      for (const auto& [level, text] : log) found.push_back(std::vector<Json>{Json(level), Json(text)});
      return Json(std::move(found));
    };
    return Json::table({{"loading", lines(loading_)}, {"reserving", lines(reserving_)}, {"layers", llama_.layers(model_.get())},
                        {"bytes", static_cast<int64_t>(llama_.bytes(model_.get()))}, {"parameters", static_cast<int64_t>(llama_.parameters(model_.get()))},
                        {"attention", options_.attention}, {"system", llama_.system_info()},
                        {"threads", std::vector<Json>{Json(options_.threads), Json(options_.threads_batch)}},
                        {"kv", std::vector<Json>{Json(options_.kv_k), Json(options_.kv_v)}}});
  }

  int vocabulary = 0, context = 0;

 private:
  void reserve() {
    static const std::map<std::string, ggml_type> kinds = {{"f32", GGML_TYPE_F32}, {"f16", GGML_TYPE_F16}, {"q8_0", GGML_TYPE_Q8_0}, {"bf16", GGML_TYPE_BF16}};
    static const std::map<std::string, llama_flash_attn_type> attention = {
        {"auto", LLAMA_FLASH_ATTN_TYPE_AUTO}, {"off", LLAMA_FLASH_ATTN_TYPE_DISABLED}, {"on", LLAMA_FLASH_ATTN_TYPE_ENABLED}};
    if (!kinds.count(options_.kv_k) || !kinds.count(options_.kv_v) || !attention.count(options_.attention))
      throw Failure("the native probe has no cache of " + options_.kv_k + " and " + options_.kv_v + " with flash attention " + options_.attention);
    batch_ = std::min(options_.batch, room_);
    context_.reset();
    llama_.listen();
    llama_context_params settings = llama_.context_defaults();
    settings.n_ctx = static_cast<uint32_t>(room_);
    settings.n_batch = settings.n_ubatch = static_cast<uint32_t>(batch_);
    settings.n_outputs_max = static_cast<uint32_t>(std::min(rows_, batch_));
    settings.n_threads = options_.threads;
    settings.n_threads_batch = options_.threads_batch;
    settings.type_k = kinds.at(options_.kv_k);
    settings.type_v = kinds.at(options_.kv_v);
    settings.flash_attn_type = attention.at(options_.attention);
    settings.embeddings = false;
    settings.pooling_type = LLAMA_POOLING_TYPE_UNSPECIFIED;
    settings.swa_full = true;
    settings.offload_kqv = settings.op_offload = options_.gpu_layers != 0;
    context_.reset(llama_.make_context(model_.get(), settings));
    if (!context_) throw llama_.failure(file_ + ": llama.cpp makes no context of " + std::to_string(room_) + " tokens");
    reserving_ = llama_.log;
  }

  // A larger context where this one is too small, with what was fed before fed again.
  void make_room(size_t tokens, size_t rows) {
    if (tokens > static_cast<size_t>(context))
      throw Failure(file_ + ": " + std::to_string(tokens) + " tokens do not fit into a context of " + std::to_string(context));
    if (tokens <= static_cast<size_t>(room_) && std::min(rows, static_cast<size_t>(batch_)) <= static_cast<size_t>(rows_)) return;
    auto doubled = [](size_t least) {
      int power = 1;
      while (static_cast<size_t>(power) < least) power *= 2;
      return power;
    };
    if (tokens > static_cast<size_t>(room_)) room_ = std::min(doubled(tokens), context);
    rows_ = std::max(rows_, doubled(rows));
    reserve();
    const std::vector<int32_t> fed = std::move(fed_);
    fed_.clear();
    if (!fed.empty()) logits(fed, fed.size());
  }

  struct Free {
    const Llama& llama;
    void operator()(llama_model* model) const { llama.free_model(model); }
    void operator()(llama_context* made) const { llama.free_context(made); }
  };

  const Llama& llama_;
  LlamaOptions options_;
  std::string file_;
  std::unique_ptr<llama_model, Free> model_{nullptr, Free{llama_}};
  std::unique_ptr<llama_context, Free> context_{nullptr, Free{llama_}};
  std::vector<Logged> loading_, reserving_;
  std::vector<int32_t> fed_;
  int room_ = 0, rows_ = 1, batch_ = 0;
};

}  // namespace edgekit
