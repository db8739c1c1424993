// The native probe: edgekit.runtimes.probe for devices without Python. That module describes the protocol; what differs here is
// said there too. `edgekit-probe REQUEST.json` answers a request, `edgekit-probe --describe` says what the machine is,
// `edgekit-probe --survey ROUNDS` how fast, and `edgekit-probe --sha256 FILE` and `--json FILE` are for the tests of its own parts.
//
// onnxruntime lies beside the program as libonnxruntime.so, llama.cpp, where it was built with that, as libllama.so.

#include <cstdio>
#include <cstring>
#include <unistd.h>

#include "speak.h"
#ifdef EDGEKIT_LLAMA
#include "tokens.h"
#endif

namespace edgekit {
namespace {

constexpr int kProtocol = 1;
constexpr double kWarmS = 1.0;

std::string folder_of(const std::string& path) {
  size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

std::string own_folder() {
  char path[4096];
  ssize_t size = readlink("/proc/self/exe", path, sizeof path - 1);
  if (size < 0) throw Failure("/proc/self/exe cannot be read");
  return folder_of(std::string(path, static_cast<size_t>(size)));
}

// The prompts of edgekit.runtimes.request.pack: `values.NAME` of all behind each other and `shapes.NAME` [prompts, axes].
std::vector<Prompt> unpack(const std::map<std::string, Array>& arrays, const std::string& prefix) {
  std::vector<Prompt> prompts;
  const std::string before = prefix + "values.";
  for (const auto& [key, values] : arrays) {
    if (key.compare(0, before.size(), before) != 0) continue;
    std::string name = key.substr(before.size());
    auto found = arrays.find(prefix + "shapes." + name);
    if (found == arrays.end() || found->second.shape.size() != 2) throw Failure("the inputs lack the shapes of " + name);
    std::vector<int64_t> shapes = found->second.integers();
    size_t count = static_cast<size_t>(found->second.shape[0]), axes = static_cast<size_t>(found->second.shape[1]), at = 0;
    prompts.resize(std::max(prompts.size(), count));
    for (size_t row = 0; row < count; ++row) {
      Array array{values.kind, {shapes.begin() + static_cast<long>(row * axes), shapes.begin() + static_cast<long>((row + 1) * axes)}, ""};
      size_t size = static_cast<size_t>(array.count()) * values.width();
      if (at + size > values.bytes.size()) throw Failure("the inputs lack values of " + name);
      array.bytes = values.bytes.substr(at, size);
      at += size;
      prompts[row][name] = std::move(array);
    }
  }
  return prompts;
}

std::vector<Json> time_calls(const Session& session, const Prompt& prompt, const Json& timing) {
  double warm = now_s() + kWarmS;
  for (int call = 0; call < static_cast<int>(timing.at("warmup").number()); ++call) {
    session.run(prompt);
    if (now_s() > warm) break;
  }
  size_t repeats = static_cast<size_t>(timing.at("repeats").number()), least = static_cast<size_t>(timing.at("least").number());
  double end = now_s() + timing.at("seconds").number();
  std::vector<Json> times;
  while (times.size() < repeats) {
    double begun = now_s();
    session.run(prompt);
    times.push_back(Json(ms_since(begun)));
    if (now_s() > end && times.size() >= least) break;
  }
  return times;
}

// The kernels that one call ran, as onnxruntime's profile has them; the host makes `work` of them.
std::vector<Json> kernels(const Ort& ort, const std::string& file, const Options& options, const Prompt& prompt) {
  Session session(ort, file, "", options, "profile");
  session.run(prompt);
  std::string path = session.end_profile();
  Json events = Json::parse(read_file(path));
  std::remove(path.c_str());
  std::vector<Json> found;
  const std::string ending = "_kernel_time";
  for (const Json& event : events.list()) {
    const Json& name = event.get("name");
    if (event.get("cat").kind() != Json::Kind::text || event.get("cat").text() != "Node" || name.kind() != Json::Kind::text) continue;
    const std::string& text = name.text();
    if (text.size() < ending.size() || text.compare(text.size() - ending.size(), ending.size(), ending) != 0) continue;
    const Json& facts = event.at("args");
    Json kernel = Json::table();
    for (const char* key : {"provider", "op_name", "input_type_shape", "output_type_shape"}) kernel.set(key, facts.at(key));
    found.push_back(std::move(kernel));
  }
  return found;
}

void answer_all(const Session& session, const std::vector<Prompt>& prompts, const Json& sizes, const std::string& outputs, Speaker& speaker) {
  std::vector<float> rows;
  std::vector<Json> real;
  size_t width = 0;
  for (const Prompt& prompt : prompts) {
    double begun = now_s();
    std::vector<float> row = session.run(prompt);
    real.push_back(Json(ms_since(begun)));
    if (width && row.size() != width) throw Failure("the model answers with rows of different widths");
    width = row.size();
    rows.insert(rows.end(), row.begin(), row.end());
  }
  speaker.say("latency_real", {{"lengths", sizes}, {"ms", std::move(real)}});
  Array answers = array_of("f4", rows);
  answers.shape = {static_cast<int64_t>(prompts.size()), static_cast<int64_t>(width)};
  write_file(outputs, npz_of({{"outputs", std::move(answers)}}));
  speaker.say("outputs", {{"file", outputs}, {"rows", static_cast<int64_t>(prompts.size())}});
  // Before what follows loads the artifact again and measures the machine: neither belongs to the artifact's memory.
  speaker.say("memory", {{"peak_mb", peak_memory_mb()}});
}

// What edgekit.devices.shell_survey asks for: the engine and, in so many rounds, how fast the machine is.
void survey(int rounds) {
  const Ort ort(own_folder() + "/libonnxruntime.so");
  std::vector<std::string> providers = ort.providers();
  std::vector<Json> measured;
  Counters before;
  for (int round = 0; round < rounds; ++round) {
    measured.push_back(measure(ort));
    measured.back().set("read_gbs", read_gbs());
  }
  Json lost = rounds ? saturation(ort) : Json::table();
  Json found = Json::table({{"version", ort.version}, {"providers", std::vector<Json>(providers.begin(), providers.end())},
                            {"rounds", std::move(measured)}, {"saturates", std::move(lost)}, {"neighbours", since(before)}});
  std::puts(found.dump().c_str());
}

// Rows of an encoder, by onnxruntime: edgekit.runtimes.probe.
void answer_rows(const Json& request, const std::string& folder, int cores, Speaker& speaker) {
  const std::string file = joined(folder, request.at("file").text()), outputs = request.at("outputs").text();
  const Json& timing = request.at("timing");
  const Options options = Options::read(request.at("options"), cores);
  const std::map<std::string, Array> arrays = read_npz(joined(folder, request.at("inputs").text()));
  const std::vector<Prompt> prompts = unpack(arrays, ""), timed = unpack(arrays, "timed.");
  auto sized = arrays.find("sizes");
  if (timed.size() != 1 || sized == arrays.end()) throw Failure("the inputs lack the prompt that is timed, or the sizes");
  std::vector<int64_t> counted = sized->second.integers();
  const Json sizes(std::vector<Json>(counted.begin(), counted.end()));
  const bool only = timing.get("only").truth();

  const Ort ort(own_folder() + "/libonnxruntime.so");
  {
    Counters before;
    double begun = now_s();
    const Session session(ort, file, "", options);
    double loaded = ms_since(begun);
    std::vector<std::string> providers = ort.providers();
    speaker.say("load", {{"ms", loaded}, {"runtime", "onnxruntime"}, {"version", ort.version},
                         {"available", std::vector<Json>(providers.begin(), providers.end())}});
    begun = now_s();
    session.run(timed[0]);
    speaker.say("first", {{"ms", ms_since(begun)}});
    std::vector<Json> times = time_calls(session, timed[0], timing);
    Json shape = Json::table({{"batch", 1}, {"sequence", timing.at("sequence")}, {"threads", options.threads ? Json(options.threads) : Json()}});
    speaker.say("latency", {{"shape", shape}, {"ms", std::move(times)}, {"neighbours", since(before)}});
    if (!only) answer_all(session, prompts, sizes, outputs, speaker);
  }
  if (!only) {
    const Json& asked = request.at("options").get("provider");
    speaker.say("work", {{"provider", "CPUExecutionProvider"}, {"asked", asked.is_null() ? Json("") : asked}, {"kernels", kernels(ort, file, options, timed[0])}});
    Counters before;
    Json speed = measure(ort);
    speaker.say("machine", {{"speed", speed}, {"neighbours", since(before)}});
  }
}

void answer(const std::string& path) {
  const Json request = Json::parse(read_file(path));
  Speaker speaker;
  Json device = describe();
  speaker.say("device", device.entries());
  const int cores = static_cast<int>(device.at("cores").number());
  const std::string folder = folder_of(path), kind = request.get("kind").is_null() ? "rows" : request.get("kind").text();
  const std::string runtime = request.at("runtime").text();
  if (kind == "rows" && runtime == "onnxruntime") {
    answer_rows(request, folder, cores, speaker);
  } else if (kind == "tokens" && runtime == "llama-cpp") {
#ifdef EDGEKIT_LLAMA
    answer_tokens(request, folder, own_folder(), cores, speaker);
#else
    throw Failure("llama.cpp does not load: the program was built without it");
#endif
  } else {
    throw Failure("the native probe answers rows in onnxruntime and tokens in llama-cpp, not " + kind + " in " + runtime);
  }
  const bool only = request.at("timing").get("only").truth();
  speaker.say("done", {{"protocol", kProtocol}, {"file", sha256(joined(folder, request.at("file").text()))}, {"request", sha256(path)},
                       {"outputs", only ? Json() : Json(sha256(request.at("outputs").text()))}});
}

}  // namespace
}  // namespace edgekit

int main(int count, char** words) {
  using namespace edgekit;
  try {
    if (count == 2 && std::strcmp(words[1], "--describe") == 0) {
      std::puts(describe().dump().c_str());
    } else if (count == 3 && std::strcmp(words[1], "--survey") == 0) {
      survey(std::atoi(words[2]));
    } else if (count == 3 && std::strcmp(words[1], "--sha256") == 0) {
      std::puts(sha256(words[2]).c_str());
    } else if (count == 3 && std::strcmp(words[1], "--json") == 0) {
      std::puts(Json::parse(read_file(words[2])).dump().c_str());
    } else if (count == 2) {
      answer(words[1]);
    } else {
      std::fputs("usage: edgekit-probe REQUEST.json\n", stderr);
      return 2;
    }
    return 0;
  } catch (const std::exception& failed) {
    std::fprintf(stderr, "%s\n", failed.what());
    return 1;
  }
}
