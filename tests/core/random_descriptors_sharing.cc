#include <algorithm>
#include <vector>

#include "random_descriptors.h"

namespace seqattn::testing {

void RandomDescriptors::fork() {
  const SeqId parent = known_id(), child = new_id();
  const std::int64_t num_tokens = source_.one_in(2) ? kAll : any_end(parent);
  compare(
      "fork", [&] { descriptor().fork(parent, child, num_tokens); },
      [&](DescriptorModel& model) { model.fork(which_, parent, child, num_tokens); });
}

void RandomDescriptors::attach() {
  source_.one_in(2) ? attach_or_adopt(true) : attach_what_the_other_has();
}
void RandomDescriptors::adopt() { attach_or_adopt(false); }

void RandomDescriptors::attach_what_the_other_has() {
  const SeqId id = new_id();
  which_ = 1 - which_;
  const SeqId other_id = known_id();
  const CacheDescriptor& other = descriptor();
  which_ = 1 - which_;
  compare(
      "attach of another descriptor's sequence",
      [&] { descriptor().attach(id, other.sequence(other_id)); },
      [&](DescriptorModel& model) {
        model.attach(which_, id, model.sequence(1 - which_, other_id));
      });
}

void RandomDescriptors::attach_or_adopt(bool attach) {
  const SeqId id = any_id();
  const std::vector<PageId> pages = any_pages();
  std::int64_t num_tokens = static_cast<std::int64_t>(pages.size()) * pool_.page_size();
  if (num_tokens > 0) num_tokens -= source_.below(pool_.page_size());
  if (source_.one_in(8)) num_tokens = any_length();
  compare(
      attach ? "attach" : "adopt",
      [&] {
        attach ? descriptor().attach(id, pages, num_tokens)
               : descriptor().adopt(id, pages, num_tokens);
      },
      [&](DescriptorModel& model) {
        attach ? model.attach(which_, id, pages, num_tokens)
               : model.adopt(which_, id, pages, num_tokens);
      });
}

void RandomDescriptors::allocate_pages() {
  const std::int64_t num_pages = source_.one_in(16) ? any_length() : source_.below(4);
  compare(
      "PagePool::allocate", [&] { return pool_.allocate(num_pages); },
      [&](DescriptorModel& model) { return model.allocate(num_pages); });
}

void RandomDescriptors::ref_pages() { ref_or_unref(true); }
void RandomDescriptors::unref_pages() { ref_or_unref(false); }

void RandomDescriptors::ref_or_unref(bool ref) {
  const std::vector<PageId> pages = !ref && !source_.one_in(4) ? callers_pages() : any_pages();
  compare(
      ref ? "PagePool::ref" : "PagePool::unref",
      [&] { ref ? pool_.ref(pages) : pool_.unref(pages); },
      [&](DescriptorModel& model) { ref ? model.ref(pages) : model.unref(pages); });
}

// References to a sequence's first pages, as a prefix cache would take them.
void RandomDescriptors::give_to_reclaimer() {
  const auto entry = table().find(known_id());
  if (!has_reclaimer_ || entry == table().end()) return;
  std::vector<PageId> pages = entry->second.pages;
  pages.resize(std::min<std::size_t>(pages.size(), static_cast<std::size_t>(source_.below(5))));
  compare(
      "ref for the reclaimer",
      [&] {
        pool_.ref(pages);
        reclaimer_.references.insert(reclaimer_.references.end(), pages.begin(), pages.end());
      },
      [&](DescriptorModel& model) {
        model.ref(pages);
        model.reclaimable.insert(model.reclaimable.end(), pages.begin(), pages.end());
      });
}

}  // namespace seqattn::testing
