//! How many pools of freed memory the system's allocator keeps. Here because asking it is `unsafe`.

/// Has glibc's allocator keep one arena to a core instead of eight. Threads that free what others took
/// leave it in the arena that it came from, so that a server's memory grew for as long as one looked:
/// from 104 to 218 MiB in two minutes of the soak test, where it now stays below 82. To be called before
/// the first thread is started; does nothing with other allocators.
pub fn limit_arenas() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // SAFETY: an option of the allocator, set by its own function; a refusal changes nothing.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, cores.try_into().unwrap_or(libc::c_int::MAX)) };
    }
}
