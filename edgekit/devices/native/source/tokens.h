// Requests of kind "tokens", answered with a decoder in llama.cpp: edgekit.runtimes.generation and edgekit.runtimes.scores.
#pragma once

#include <thread>

#include "llama_engine.h"
#include "speak.h"

namespace edgekit {

struct Sequence {
  std::vector<int32_t> ids;
  size_t start;

  std::vector<int32_t> prompt() const { return {ids.begin(), ids.begin() + static_cast<long>(start)}; }
};

// What a reference knows of each scored token: its likeliest classes, [places, known] each.
struct Reference {
  std::vector<int64_t> ids;
  std::vector<float> logs;
  size_t known;
};

struct TokenInputs {
  std::vector<int32_t> ids;
  std::vector<Sequence> sequences;
  std::map<std::string, Reference> references;
  size_t referenced, generate, max_new;
  std::set<int64_t> stop;

  explicit TokenInputs(const std::map<std::string, Array>& arrays) {
    auto array = [&](const std::string& name) -> const Array& {
      auto found = arrays.find(name);
      return found == arrays.end() ? throw Failure("the inputs lack " + name) : found->second;
    };
    auto number = [&](const char* name) { return static_cast<size_t>(array(name).integers().at(0)); };
    const std::vector<int64_t> all = array("ids").integers(), offsets = array("offsets").integers(), starts = array("starts").integers();
    ids.assign(all.begin(), all.end());
    if (offsets.size() != starts.size() + 1) throw Failure("the inputs' offsets and starts contradict each other");
    for (size_t index = 0; index < starts.size(); ++index) {
      if (offsets[index] < 0 || offsets[index + 1] > static_cast<int64_t>(ids.size()) || starts[index] < 1 || starts[index] > offsets[index + 1] - offsets[index])
        throw Failure("starts: a sequence starts to be scored within itself, at 1 or later");
      sequences.push_back({{ids.begin() + offsets[index], ids.begin() + offsets[index + 1]}, static_cast<size_t>(starts[index])});
    }
    referenced = number("referenced");
    generate = number("generate");
    max_new = number("max_new");
    const std::vector<int64_t> stops = array("stop").integers();
    stop.insert(stops.begin(), stops.end());
    size_t scored = 0;
    for (size_t place = 0; place < std::min(referenced, sequences.size()); ++place) scored += sequences[place].ids.size() - sequences[place].start;
    for (const char* name : {"student", "teacher"}) {
      if (!arrays.count(std::string(name) + "_ids")) continue;
      const Array &known = array(std::string(name) + "_ids"), &logs = array(std::string(name) + "_logprobs");
      if (known.shape.size() != 2 || known.shape != logs.shape || logs.kind != "f4" || known.shape[0] != static_cast<int64_t>(scored))
        throw Failure(std::string(name) + "_ids: not a row for each scored token of the sequences that are referenced");
      Reference reference{known.integers(), std::vector<float>(logs.bytes.size() / 4), static_cast<size_t>(known.shape[1])};
      std::memcpy(reference.logs.data(), logs.bytes.data(), logs.bytes.size());
      references[name] = std::move(reference);
    }
  }

  // The tokens that the longest sequence, or the longest prompt with its answer, takes.
  size_t context() const {
    size_t longest = 1;
    for (size_t place = 0; place < sequences.size(); ++place) {
      longest = std::max(longest, sequences[place].ids.size());
      if (place < generate) longest = std::max(longest, sequences[place].start + max_new);
    }
    return longest;
  }
};

// scores.log_sum_exp of one row.
inline double log_sum_exp(const float* row, size_t classes) {
  const double highest = *std::max_element(row, row + classes);
  double sum = 0;
  for (size_t index = 0; index < classes; ++index) sum += std::exp(row[index] - highest);
  return std::log(sum) + highest;
}

// scores.sparse_kl of one row: see there.
inline double sparse_kl(const Reference& reference, size_t place, const float* row, size_t classes, double log_sum) {
  const size_t first = place * reference.known;
  double share = 0, divergence = 0, other = 0;
  for (size_t index = 0; index < reference.known; ++index) share += std::exp(static_cast<double>(reference.logs[first + index]));
  const double left = 1 - share;
  const bool all = left <= 1e-6 || reference.known == classes;
  for (size_t index = 0; index < reference.known; ++index) {
    const int64_t id = reference.ids[first + index];
    if (id < 0 || id >= static_cast<int64_t>(classes)) throw Failure("a reference knows a token that is none of the vocabulary's");
    const double p = static_cast<double>(reference.logs[first + index]) - (all ? std::log(share) : 0), q = row[id] - log_sum;
    divergence += std::exp(p) * (p - q);
    other += std::exp(q);
  }
  if (!all) divergence += left * (std::log(left) - std::log(std::max(1 - other, 2.220446049250313e-16)));
  return std::max(divergence, 0.0);
}

// What is made of the sequences, as arrays for the outputs.
class Scored {
 public:
  Scored(Generator& generator, const TokenInputs& inputs, int batch) {
    const size_t classes = static_cast<size_t>(generator.vocabulary), most = (64u << 20) / (4 * classes);
    const size_t step = std::max<size_t>(1, std::min<size_t>(static_cast<size_t>(batch), most));
    std::map<std::string, std::vector<float>> divergence;
    size_t places = 0;
    for (size_t turn = 0; turn < inputs.sequences.size(); ++turn) {
      const Sequence& sequence = inputs.sequences[turn];
      generator.clear();
      for (size_t begin = 0; begin + 1 < sequence.ids.size(); begin += step) {
        const size_t end = std::min(begin + step, sequence.ids.size() - 1);
        const std::vector<int32_t> piece(sequence.ids.begin() + static_cast<long>(begin), sequence.ids.begin() + static_cast<long>(end));
        const size_t from = std::min(sequence.start - 1 > begin ? sequence.start - 1 - begin : 0, piece.size());
        const std::vector<float> logits = generator.logits(piece, from);
        for (size_t index = from; index < piece.size(); ++index) {
          const float* row = logits.data() + (index - from) * classes;
          const double log_sum = log_sum_exp(row, classes);
          nll_.push_back(static_cast<float>(log_sum - row[sequence.ids[begin + index + 1]]));
          top1_.push_back(static_cast<int32_t>(std::max_element(row, row + classes) - row));
          if (turn >= inputs.referenced) continue;
          for (const auto& [name, reference] : inputs.references)
            divergence[name].push_back(static_cast<float>(sparse_kl(reference, places, row, classes, log_sum)));
          ++places;
        }
      }
    }
    for (const auto& [name, reference] : inputs.references) {
      std::string same;
      for (size_t place = 0; place < divergence[name].size(); ++place) same += static_cast<char>(top1_[place] == reference.ids[place * reference.known]);
      arrays.emplace_back(name + "_kl", array_of("f4", divergence[name]));
      arrays.emplace_back(name + "_top1", Array{"b1", {static_cast<int64_t>(same.size())}, same});
    }
    arrays.emplace_back("nll", array_of("f4", nll_));
    arrays.emplace_back("top1", array_of("i4", top1_));
  }

  size_t count() const { return nll_.size(); }

  std::vector<std::pair<std::string, Array>> arrays;

 private:
  std::vector<float> nll_;
  std::vector<int32_t> top1_;
};

// The likeliest token after each prompt, the likeliest after that, and so on, until one stops it or there are enough.
inline void add_answers(Generator& generator, const TokenInputs& inputs, Scored& scored) {
  std::vector<int32_t> said;
  std::vector<int64_t> offsets = {0};
  for (size_t place = 0; place < std::min(inputs.generate, inputs.sequences.size()); ++place) {
    generator.clear();
    std::vector<int32_t> fed = inputs.sequences[place].prompt();
    for (size_t turn = 0; turn < inputs.max_new; ++turn) {
      const int32_t token = generator.likeliest(fed);
      if (inputs.stop.count(token)) break;
      said.push_back(token);
      fed = {token};
    }
    offsets.push_back(static_cast<int64_t>(said.size()));
  }
  scored.arrays.emplace_back("answers", array_of("i4", said));
  scored.arrays.emplace_back("answer_offsets", array_of("i8", offsets));
}

// What is timed, as far as the model's context reaches: generation.fit.
struct TokenTiming {
  std::vector<int32_t> ids;
  std::vector<size_t> prompts;
  size_t fresh, repeats;
  double seconds;

  TokenTiming(const Json& asked, const std::vector<int32_t>& from, size_t limit) {
    for (const Json& length : asked.at("prompts").list())
      if (length.number() < static_cast<double>(limit)) prompts.push_back(static_cast<size_t>(length.number()));
    std::sort(prompts.begin(), prompts.end());
    if (prompts.empty()) prompts.push_back(limit / 2);
    for (size_t index = 0; index < longest(); ++index) ids.push_back(from.empty() ? 0 : from[index % from.size()]);
    fresh = std::min(static_cast<size_t>(asked.at("new").number()), limit - longest());
    repeats = static_cast<size_t>(asked.at("repeats").number());
    seconds = asked.at("seconds").number();
  }

  size_t longest() const { return prompts.back(); }
  std::vector<int32_t> first(size_t length) const { return {ids.begin(), ids.begin() + static_cast<long>(length)}; }
};

// Milliseconds from a prompt's ids to the first token, the first call's first; at least one more.
inline std::vector<double> time_prompt(Generator& generator, const std::vector<int32_t>& prompt, const TokenTiming& timing, double seconds) {
  std::vector<double> times;
  const double end = now_s() + seconds;
  while (times.size() < 2 || (times.size() <= timing.repeats && now_s() < end)) {
    generator.clear();
    const double begun = now_s();
    generator.likeliest(prompt);
    times.push_back(ms_since(begun));
  }
  return times;
}

// Times of each token of one round of new ones behind the longest prompt.
inline void time_tokens(Generator& generator, const TokenTiming& timing, std::vector<double>& times) {
  generator.clear();
  int32_t token = generator.likeliest(timing.ids);
  for (size_t turn = 0; turn < timing.fresh; ++turn) {
    const double begun = now_s();
    token = generator.likeliest({token});
    times.push_back(ms_since(begun));
  }
}

inline Json listed(const std::vector<double>& times) { return Json(std::vector<Json>(times.begin(), times.end())); }

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// Say how long prompts take to their first token and each token behind the longest, each from an artifact of its own, freshly
// opened; what the host makes `work` of.
inline Json say_times(const Llama& llama, const std::string& file, const LlamaOptions& options, const TokenTiming& timing, Speaker& speaker) {
  std::vector<Json> prefill, lengths;
  std::vector<double> tokens;
  const char* ended = "calls";
  Json work;
  Counters before;
  for (size_t length : timing.prompts) {
    Generator generator(llama, file, options);
    lengths.push_back(Json(static_cast<int64_t>(length)));
    prefill.push_back(listed(time_prompt(generator, timing.first(length), timing, timing.seconds / static_cast<double>(timing.prompts.size()))));
    if (length != timing.longest()) continue;
    const double end = now_s() + timing.seconds;
    for (size_t turn = 0; turn < std::max<size_t>(timing.repeats, 1); ++turn) {
      if (turn && now_s() > end) {
        ended = "time";
        break;
      }
      time_tokens(generator, timing, tokens);
    }
    work = generator.work();
  }
  const Json threads(options.threads), batch(options.threads_batch);
  speaker.say("prefill", {{"lengths", lengths}, {"ms", prefill}, {"cold", true}, {"threads", threads}, {"threads_batch", batch}});
  speaker.say("decode", {{"depth", static_cast<int64_t>(timing.longest())}, {"new", static_cast<int64_t>(timing.fresh)}, {"ms", listed(tokens)},
                         {"spell", Json::table({{"calls", static_cast<int64_t>(tokens.size())}, {"ended", ended}})},
                         {"neighbours", since(before)}, {"threads", threads}, {"threads_batch", batch}});
  return work;
}

// Say the tokens per second of the longest prompt and behind it with 1, 2, 4 ... threads, up to one per core.
inline void say_sweep(const Llama& llama, const std::string& file, const LlamaOptions& options, const TokenTiming& timing, int cores, Speaker& speaker) {
  std::set<int> counts = {cores};
  for (int count = 1; count < cores; count *= 2) counts.insert(count);
  Json prefill = Json::table(), decode = Json::table();
  for (int count : counts) {
    Generator generator(llama, file, options.with_threads(count));
    std::vector<double> times = time_prompt(generator, timing.ids, timing, timing.seconds / (2.0 * static_cast<double>(counts.size()))), tokens;
    times.erase(times.begin());
    time_tokens(generator, timing, tokens);
    prefill.set(std::to_string(count), rounded(1000 * static_cast<double>(timing.longest()) / median(times), 1e3));
    decode.set(std::to_string(count), rounded(1000 / median(tokens), 1e3));
  }
  speaker.say("threads", {{"length", static_cast<int64_t>(timing.longest())}, {"prefill", prefill}, {"decode", decode}});
}

// Bytes read plus bytes written by copies in so many threads at once, in 10^9 per second of the wall's clock.
inline double copies_gbs(int threads) {
  const size_t size = copy_bytes() / static_cast<size_t>(threads);
  std::vector<std::vector<char>> source(static_cast<size_t>(threads), std::vector<char>(size, 1)), sink(static_cast<size_t>(threads), std::vector<char>(size));
  double best = 1e9;
  const double end = now_s() + 0.2;
  for (int turn = 0; turn < 2 || now_s() < end; ++turn) {
    const double begun = now_s();
    std::vector<std::thread> running;
    for (size_t index = 0; index < source.size(); ++index)
      running.emplace_back([&, index] { std::memcpy(sink[index].data(), source[index].data(), size); });
    for (std::thread& one : running) one.join();
    best = std::min(best, now_s() - begun);
  }
  return 2 * static_cast<double>(size) * threads / best / 1e9;
}

// Answer a request: generation.answer. Without the lines of meters.
inline void answer_tokens(const Json& request, const std::string& folder, const std::string& libraries, int cores, Speaker& speaker) {
  const std::string file = joined(folder, request.at("file").text()), outputs = request.at("outputs").text();
  const TokenInputs inputs(read_npz(joined(folder, request.at("inputs").text())));
  LlamaOptions options = LlamaOptions::read(request.at("options"), cores);
  const Json& asked = request.at("timing");
  const Llama llama(libraries + "/libllama.so");
  const Json baseline = peak_memory_mb();
  double begun = now_s();
  auto generator = std::make_unique<Generator>(llama, file, options);
  const std::vector<Json> available = llama.supports_gpu_offload() ? std::vector<Json>{"GPU", "CPU"} : std::vector<Json>{"CPU"};
  speaker.say("load", {{"ms", ms_since(begun)}, {"runtime", "llama-cpp"}, {"version", llama.version()}, {"available", available}});
  const size_t limit = static_cast<size_t>(generator->context);
  const Json loaded = peak_memory_mb();
  if (inputs.context() > limit)
    throw Failure(file + ": the sequences take " + std::to_string(inputs.context()) + " tokens of context, the model has " + std::to_string(limit) +
                  "; shorten the prompts (data.max_length) or their answers");
  const TokenTiming timing(asked, inputs.ids, limit);
  begun = now_s();
  generator->likeliest(timing.first(timing.prompts.front()));
  speaker.say("first", {{"ms", ms_since(begun)}});
  generator.reset();
  // Reserved once, so that none of the timed calls does, and the memory is that of what was asked.
  if (options.context == 0) options.context = static_cast<int>(std::min(limit, std::max(inputs.context(), timing.longest() + timing.fresh)));
  Json work = say_times(llama, file, options, timing, speaker);
  if (asked.get("only").truth()) return;
  if (asked.get("sweep").truth()) say_sweep(llama, file, options, timing, cores, speaker);
  speaker.say("memory", {{"peak_mb", peak_memory_mb()}, {"baseline_mb", baseline}, {"loaded_mb", loaded}});
  {
    Generator writer(llama, file, options);
    Scored scored(writer, inputs, options.batch);
    add_answers(writer, inputs, scored);
    write_file(outputs, npz_of(scored.arrays));
    speaker.say("outputs", {{"file", outputs}, {"scored", static_cast<int64_t>(scored.count())},
                            {"answers", static_cast<int64_t>(std::min(inputs.generate, inputs.sequences.size()))}});
  }
  work.set("asked", "");
  speaker.say("work", work.entries());
  Counters before;
  Json speed = measure(Ort(libraries + "/libonnxruntime.so"));
  speed.set("copy_gbs", copies_gbs(options.threads));
  speaker.say("machine", {{"speed", speed}, {"neighbours", since(before)}});
}

}  // namespace edgekit
