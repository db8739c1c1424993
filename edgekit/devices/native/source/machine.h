// What edgekit.runtimes.machine and edgekit.runtimes.neighbours tell of a Linux machine, told the same way (Android is one).
#pragma once

#include <dirent.h>
#include <glob.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <new>
#include <set>

#include "engine.h"

namespace edgekit {

constexpr double kMib = 1 << 20;

inline double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline std::string stripped(const std::string& text) {
  size_t begin = text.find_first_not_of(" \t\r\n"), end = text.find_last_not_of(" \t\r\n");
  return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
}

inline std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t end; (end = text.find(at, begin)) != std::string::npos; begin = end + 1) parts.push_back(text.substr(begin, end - begin));
  parts.push_back(text.substr(begin));
  return parts;
}

// The values of a key in lines of "key : value".
inline std::vector<std::string> fields(const std::string& text, const std::string& key) {
  std::vector<std::string> found;
  for (const std::string& line : split(text, '\n')) {
    size_t colon = line.find(':');
    if (colon != std::string::npos && stripped(line.substr(0, colon)) == key) found.push_back(stripped(line.substr(colon + 1)));
  }
  return found;
}

inline std::string first_of(const std::vector<std::string>& values) { return values.empty() ? "" : values.front(); }

inline bool digits(const std::string& text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
}

inline int available_cores() {
  cpu_set_t mine;
  int cores = sched_getaffinity(0, sizeof mine, &mine) == 0 ? CPU_COUNT(&mine) : static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  std::string told = stripped(read_or_empty("/sys/fs/cgroup/cpu.max"));
  if (told.empty())
    told = stripped(read_or_empty("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")) + " " + stripped(read_or_empty("/sys/fs/cgroup/cpu/cpu.cfs_period_us"));
  std::vector<std::string> words = split(told, ' ');
  if (words.size() == 2 && digits(words[0]) && digits(words[1])) {
    long quota = std::atol(words[0].c_str()), period = std::atol(words[1].c_str());
    if (period > 0) cores = std::min(cores, std::max(1, static_cast<int>((quota + period - 1) / period)));
  }
  return std::max(cores, 1);
}

// Physical cores that this process may use. Virtual machines may number every core 0.
inline int count_cores(const std::string& cpuinfo) {
  int mine = available_cores();
  std::vector<std::string> sockets = fields(cpuinfo, "physical id"), cores = fields(cpuinfo, "core id");
  std::set<std::pair<std::string, std::string>> real;
  for (size_t index = 0; index < std::min(sockets.size(), cores.size()); ++index) real.emplace(sockets[index], cores[index]);
  return real.size() > 1 ? std::min(mine, static_cast<int>(real.size())) : mine;
}

// What runs programs of this architecture in place of such a CPU: machine._emulator. Empty where the system does not tell.
inline std::string emulator_of(const std::string& arch) {
  static const std::map<std::string, std::string> families = {
      {"i686", "x86_64"}, {"i386", "x86_64"}, {"armv7l", "aarch64"}, {"armv8l", "aarch64"}, {"armv6l", "aarch64"}};
  auto family = [](const std::string& name) {
    auto found = families.find(name);
    return found == families.end() ? name : found->second;
  };
  std::string kernel = stripped(read_or_empty("/proc/sys/kernel/arch"));
  if (kernel.empty() || family(kernel) == family(arch)) return "";
  return "programs for " + arch + " on a kernel for " + kernel;
}

// The keys of edgekit.runtimes.machine.Machine; the host names the core by `part`.
inline Json describe() {
  utsname system;
  uname(&system);
  std::string arch = system.machine, text = read_or_empty("/proc/cpuinfo");
  std::string implementer = first_of(fields(text, "CPU implementer")), part = first_of(fields(text, "CPU part"));
  std::string flags = first_of(fields(text, "flags"));
  if (flags.empty()) flags = first_of(fields(text, "Features"));
  std::vector<std::string> features = split(flags, ' ');
  features.erase(std::remove(features.begin(), features.end(), ""), features.end());
  std::sort(features.begin(), features.end());
  std::string cpu = arch;
  for (const char* key : {"Hardware", "Model", "model name"})
    if (std::string found = first_of(fields(text, key)); !found.empty()) cpu = found;
  std::string clock = stripped(read_or_empty("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"));
  std::string governor = stripped(read_or_empty("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"));
  Json memory(static_cast<int64_t>(static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE)) / kMib));
  Json machine = Json::table({
      {"arch", arch == "arm64" ? Json("aarch64") : Json(arch)},
      {"cpu", cpu},
      {"part", implementer.empty() || part.empty() ? Json() : Json(implementer + "/" + part)},
      {"cores", count_cores(text)},
      {"features", Json(std::vector<Json>(features.begin(), features.end()))},
      {"memory_mb", memory},
      {"clock_ghz", digits(clock) ? Json(std::atof(clock.c_str()) / 1e6) : Json()},
      {"governor", governor.empty() ? Json() : Json(governor)},
      {"system", std::string(system.sysname) + " " + system.release},
      {"python", ""},
  });
  if (std::string emulator = emulator_of(arch); !emulator.empty()) machine.set("emulator", emulator);
  return machine;
}

// The largest resident size of this process so far, in MiB; null where the system does not tell.
inline Json peak_memory_mb() {
  std::string high = first_of(fields(read_or_empty("/proc/self/status"), "VmHWM"));
  if (!high.empty()) return Json(std::atof(high.c_str()) / 1024);
  rusage used;
  return getrusage(RUSAGE_SELF, &used) == 0 ? Json(static_cast<double>(used.ru_maxrss) / 1024) : Json();
}

// What neighbours.py counts: see there for what each value means. A negative value is one that nobody tells.
struct Counters {
  double clock = now_s(), own = -1, busy = -1, steal = -1, waited = -1, throttled = -1, slowed = 0, switches = -1;
  int cpus = 0;

  Counters() {
    timespec used;
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used) == 0) own = static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) / 1e9;
    double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
    for (const std::string& line : split(read_or_empty("/proc/stat"), '\n')) {
      double user, nice, system, idle, io, irq, soft, stolen;
      if (std::sscanf(line.c_str(), "cpu %lf %lf %lf %lf %lf %lf %lf %lf", &user, &nice, &system, &idle, &io, &irq, &soft, &stolen) == 8) {
        // A sandbox has the file, with nothing in it.
        if (user + system > 0) {
          busy = (user + nice + system + irq + soft) / ticks;
          steal = stolen / ticks;
        }
      } else if (line.compare(0, 3, "cpu") == 0) {
        ++cpus;
      }
    }
    if (cpus == 0) cpus = static_cast<int>(sysconf(_SC_NPROCESSORS_CONF));
    if (DIR* tasks = opendir("/proc/self/task")) {
      while (dirent* task = readdir(tasks)) {
        unsigned long long ran, wait;
        if (std::sscanf(read_or_empty(std::string("/proc/self/task/") + task->d_name + "/schedstat").c_str(), "%llu %llu", &ran, &wait) == 2)
          waited = std::max(waited, 0.0) + static_cast<double>(wait) / 1e9;
      }
      closedir(tasks);
    }
    count_denied("/sys/fs/cgroup/cpu/cpu.stat", "throttled_time", 1e9);
    count_denied("/sys/fs/cgroup/cpu.stat", "throttled_usec", 1e6);
    glob_t paths;
    if (glob("/sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count", 0, nullptr, &paths) == 0)
      for (size_t index = 0; index < paths.gl_pathc; ++index) slowed += std::atof(read_or_empty(paths.gl_pathv[index]).c_str());
    globfree(&paths);
    rusage used_up;
    if (getrusage(RUSAGE_SELF, &used_up) == 0) switches = static_cast<double>(used_up.ru_nivcsw);
  }

 private:
  void count_denied(const char* path, const char* key, double unit) {
    for (const std::string& line : split(read_or_empty(path), '\n'))
      if (std::vector<std::string> words = split(line, ' '); words.size() == 2 && words[0] == key) throttled = std::atof(words[1].c_str()) / unit;
  }
};

inline Json rounded(double value, double unit) { return Json(std::round(value * unit) / unit); }

inline Json since(const Counters& before) {
  Counters after;
  const double tick_s = 0.02, seconds = std::max(after.clock - before.clock, 1e-9), own = std::max(after.own - before.own, 0.0);
  auto passed = [](double from, double to) { return std::max(to - from, 0.0); };
  auto known = [](double from, double to) { return from >= 0 && to >= 0; };
  Json others, steal, waited, throttled, switches, load;
  if (known(before.busy, after.busy)) others = rounded(std::max(passed(before.busy, after.busy) - own - tick_s, 0.0) / seconds, 1e4);
  if (known(before.steal, after.steal)) steal = rounded(std::max(passed(before.steal, after.steal) - tick_s, 0.0) / seconds / after.cpus, 1e4);
  if (known(before.waited, after.waited)) {
    double wait = passed(before.waited, after.waited);
    waited = rounded(wait / std::max(wait + own, 1e-9), 1e4);
  }
  if (known(before.throttled, after.throttled)) throttled = rounded(passed(before.throttled, after.throttled) / seconds, 1e4);
  if (known(before.switches, after.switches)) switches = Json(passed(before.switches, after.switches));
  std::string average = read_or_empty("/proc/loadavg");
  if (!average.empty()) load = Json(std::atof(average.c_str()));
  return Json::table({{"seconds", rounded(seconds, 1e6)}, {"cpus", after.cpus}, {"others", others}, {"steal", steal}, {"waited", waited},
                      {"throttled", throttled}, {"slowed", passed(before.slowed, after.slowed)}, {"switches", switches}, {"load", load}});
}

// Seconds of processor time that this thread has taken.
inline double own_s() {
  timespec used;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) / 1e9;
}

// Seconds of processor time of the fastest of the calls that fit into a short spell: edgekit.runtimes.timing.fastest.
inline double fastest(const std::function<void()>& call) {
  double started = now_s(), begun = own_s();
  call();
  double first = own_s() - begun, now = now_s();
  if (now - started > 2.0) return first;
  double best = first * 1e9, end = now + 0.2;
  while (true) {
    begun = own_s();
    call();
    best = std::min(best, own_s() - begun);
    if (now_s() >= end) return best;
  }
}

// The bytes of an ONNX model y = operator(a, b) with a constant b [512, 512]: throughput.py's, by the field numbers of onnx.proto.
class ProductModel {
 public:
  static constexpr int kSide = 512;

  static std::string make(const std::string& name, int left, int right, int out, const std::string& constant) {
    std::string node = bytes(1, "a") + bytes(1, "b") + bytes(2, "y") + bytes(4, name);
    std::string tensor = number(1, kSide) + number(1, kSide) + number(2, right) + bytes(8, "b") + bytes(9, constant);
    std::string graph = bytes(1, node) + bytes(2, "product") + bytes(5, tensor) + bytes(11, value("a", left)) + bytes(12, value("y", out));
    return number(1, 8) + bytes(7, graph) + bytes(8, bytes(1, "") + number(2, 13));
  }

 private:
  static std::string varint(size_t value) {
    std::string out;
    for (; value > 0x7F; value >>= 7) out += static_cast<char>((value & 0x7F) | 0x80);
    return out + static_cast<char>(value);
  }
  static std::string number(size_t field, size_t value) { return varint(field << 3) + varint(value); }
  static std::string bytes(size_t field, const std::string& content) { return varint(field << 3 | 2) + varint(content.size()) + content; }
  static std::string value(const char* name, int type) {
    std::string extents = bytes(1, number(1, kSide)) + bytes(1, number(1, kSide));
    return bytes(1, name) + bytes(2, bytes(1, number(1, static_cast<size_t>(type)) + bytes(2, extents)));
  }
};

// Of a buffer that is larger than the caches, and small on a device with little memory.
inline size_t copy_bytes() {
  size_t memory = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return std::min<size_t>(128 << 20, memory / 16);
}

// Bytes that one thread reads, in 10^9 per second of its processor time; from large pages where there are any, as NumPy's are.
inline double read_gbs() {
  typedef uint64_t Lanes __attribute__((vector_size(64)));  // as wide as any core's: a compiler makes it of what there is
  const size_t size = copy_bytes() / (2 * sizeof(Lanes)) * (2 * sizeof(Lanes));
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  madvise(memory, size, MADV_HUGEPAGE);
  std::memset(memory, 1, size);
  const Lanes *begin = static_cast<const Lanes*>(memory), *end = begin + size / sizeof(Lanes);
  volatile uint64_t kept = 0;
  double seconds = fastest([&] {
    Lanes even{}, odd{};
    for (const Lanes* at = begin; at != end; at += 2) {
      even ^= at[0];
      odd ^= at[1];
    }
    kept = kept ^ (even ^ odd)[0];
  });
  munmap(memory, size);
  return static_cast<double>(size) / seconds / 1e9;
}

// How fast one core is: bandwidth_gbs by copies, fp32_gflops and int8_gops by onnxruntime's own products.
inline Json measure(const Ort& ort) {
  size_t size = copy_bytes();
  double copies;
  {
    std::vector<char> source(size, 1), sink(size);
    copies = 2 * static_cast<double>(size) / fastest([&] { std::memcpy(sink.data(), source.data(), size); }) / 1e9;
  }
  constexpr int side = ProductModel::kSide;
  const double operations = 2.0 * side * side * side;
  auto speed = [&](const std::string& model, const std::string& left) {
    Options options;
    options.threads = 1;
    Session session(ort, "", model, options);
    Prompt prompt = {{"a", Array{left, {side, side}, ""}}};
    Array& a = prompt["a"];
    for (int index = 0; index < side * side; ++index) {
      unsigned number = static_cast<unsigned>(index) * 2654435761u >> 26;  // 0 to 63
      if (left == "f4") {
        float value = static_cast<float>(number);
        a.bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
      } else {
        a.bytes += static_cast<char>(number);
      }
    }
    return operations / fastest([&] { session.run_plain(prompt); }) / 1e9;
  };
  std::string floats, small;
  for (int index = 0; index < side * side; ++index) {
    int number = static_cast<int>(static_cast<unsigned>(index) * 2246822519u >> 25) - 64;  // -64 to 63
    float value = static_cast<float>(number);
    floats.append(reinterpret_cast<const char*>(&value), sizeof value);
    small += static_cast<char>(number);
  }
  // onnx.proto's numbers for element types: 1 float32, 2 uint8, 3 int8, 6 int32.
  double fp32 = speed(ProductModel::make("MatMul", 1, 1, 1, floats), "f4");
  double int8 = speed(ProductModel::make("MatMulInteger", 2, 3, 6, small), "u1");
  return Json::table({{"bandwidth_gbs", copies}, {"fp32_gflops", fp32}, {"int8_gops", int8}});
}

// Whether products of bytes lose what 16 bits cannot hold, by the types of both sides: throughput.saturation.
inline Json saturation(const Ort& ort) {
  struct Pair {
    const char *name, *left;
    int left_type, left_most, right_type, right_most;
  };
  constexpr int side = ProductModel::kSide;
  Json found = Json::table();
  for (const Pair& pair : {Pair{"u8s8", "u1", 2, 255, 3, 127}, Pair{"s8s8", "i1", 3, 127, 3, 127}, Pair{"u8u8", "u1", 2, 255, 2, 255}}) {
    Options options;
    options.threads = 1;
    const std::string constant(side * side, static_cast<char>(pair.right_most));
    Session session(ort, "", ProductModel::make("MatMulInteger", pair.left_type, pair.right_type, 6, constant), options);
    const int32_t exact = side * pair.left_most * pair.right_most;
    bool lost = false;
    for (int32_t sum : session.run_whole({{"a", Array{pair.left, {side, side}, std::string(side * side, static_cast<char>(pair.left_most))}}}))
      lost = lost || sum != exact;
    found.set(pair.name, lost);
  }
  return found;
}

}  // namespace edgekit
