// The numbered lines of the protocol, and the paths of a request.
#pragma once

#include "machine.h"

namespace edgekit {

inline double ms_since(double begun) { return std::round((now_s() - begun) * 1e9) / 1e6; }

class Speaker {
 public:
  void say(const char* event, std::vector<Json::Entry> facts) {
    std::vector<Json::Entry> entries = {{"event", event}, {"seq", number_++}};
    entries.insert(entries.end(), std::make_move_iterator(facts.begin()), std::make_move_iterator(facts.end()));
    std::string line = Json::table(std::move(entries)).dump() + "\n";
    std::fwrite(line.data(), 1, line.size(), stdout);
    if (std::fflush(stdout) != 0) throw Failure("standard output takes nothing");
  }

 private:
  int number_ = 0;
};

inline std::string joined(const std::string& folder, const std::string& path) { return path[0] == '/' ? path : folder + "/" + path; }

}  // namespace edgekit
