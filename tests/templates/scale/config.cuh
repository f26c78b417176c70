#ifndef EVO_THREADS
#error "EVO missing EVO_THREADS"
#endif
#ifndef EVO_ITEMS
#error "EVO missing EVO_ITEMS"
#endif
namespace cfg {
constexpr int kThreads = EVO_THREADS;
constexpr int kItems = EVO_ITEMS;  // per thread
static_assert(kThreads % 32 == 0, "EVO rule whole_warps: threads must be a multiple of 32");
}  // namespace cfg
