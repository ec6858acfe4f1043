/* What interrupts a thread to write down where it is, where that can fail.

CPython 3.11 and 3.12 enter a function in two steps. Between them there is no valid frame, and what
faulthandler finds there it follows: in one of some hundred samples it would end the process, or not
end itself. Here the handler that it has installed is called so that only the sample is lost.
*/

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>

enum { PATIENCE = 25 }; /* ticks of the clock */

/* One thread looks at a time. These are not of each thread: memory for that could be asked for in
the midst of malloc. */
static struct sigaction look, fault;
static volatile sig_atomic_t looking, ticks;
static volatile pthread_t looker;
static sigjmp_buf before;

static void on_fault(int number) {
    (void)number;
    siglongjmp(before, 1);
}

static void on_profile(int number) {
    struct sigaction others;
    int error = errno;

    if (__sync_lock_test_and_set(&looking, 1)) {
        if (pthread_equal(looker, pthread_self()) && ++ticks > PATIENCE)
            siglongjmp(before, 1);
        return;
    }
    sigaction(SIGSEGV, &fault, &others);
    if (!sigsetjmp(before, 1)) {
        ticks = 0;
        looker = pthread_self();
        look.sa_handler(number);
    }
    looker = 0;
    sigaction(SIGSEGV, &others, 0);
    __sync_lock_release(&looking);
    errno = error;
}

/* Call it behind faulthandler.register(SIGPROF). */
void guard(void) {
    struct sigaction guarded;

    fault.sa_handler = on_fault;
    sigaction(SIGPROF, 0, &look);
    guarded = look;
    guarded.sa_handler = on_profile;
    guarded.sa_flags |= SA_NODEFER;
    sigaction(SIGPROF, &guarded, 0);
}
