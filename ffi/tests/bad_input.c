/*
 * Everything that a C program can do wrong and be told so. Prints what fails
 * and exits 1, else prints `ok`.
 */
#include <collimate.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;

/* The call gives `status`, and a last error that contains `part`. */
#define EXPECT(call, status, part) expect(__LINE__, #call, (call), (status), (part))

static void expect(int line, const char *call, int32_t got, int32_t status, const char *part)
{
    if (got == status && (status == CLM_OK || strstr(clm_last_error(), part)))
        return;
    printf("line %d: %s gives %d (%s), %s\n", line, call, (int)got, clm_status_text(got), clm_last_error());
    failures++;
}

#define CHECK(condition)                                         \
    do {                                                         \
        if (!(condition)) {                                      \
            printf("line %d: not %s\n", __LINE__, #condition);   \
            failures++;                                          \
        }                                                        \
    } while (0)

static int32_t echo(clm_task *task, void *user_data)
{
    const void *data = NULL;
    size_t len = 0;
    CHECK(user_data == &failures);
    if (clm_task_arg(task, 0, &data, &len) != CLM_OK)
        return clm_task_fail(task, NULL);
    return clm_task_return(task, data, len);
}

static int32_t silent(clm_task *task, void *user_data)
{
    (void)task;
    (void)user_data;
    return CLM_OK;
}

static int32_t returns_7(clm_task *task, void *user_data)
{
    (void)user_data;
    clm_task_return(task, "x", 1);
    return 7;
}

/* What a body may do wrong, and that it cannot end the runtime. */
static int32_t clumsy(clm_task *task, void *user_data)
{
    const void *data;
    size_t len;
    int32_t status;
    (void)user_data;
    EXPECT(clm_task_arg(NULL, 0, &data, &len), CLM_NULL_POINTER, "task is null");
    EXPECT(clm_task_arg(task, 0, NULL, &len), CLM_NULL_POINTER, "data is null");
    EXPECT(clm_task_arg(task, 1, &data, &len), CLM_BAD_ARGUMENT, "argument 1 does not exist");
    EXPECT(clm_task_arg(task, 0, &data, NULL), CLM_OK, "");
    EXPECT(clm_task_return(NULL, "x", 1), CLM_NULL_POINTER, "task is null");
    EXPECT(clm_task_return(task, NULL, 1), CLM_NULL_POINTER, "data is null");
    EXPECT(clm_task_return(task, "x", (size_t)-1), CLM_BAD_ARGUMENT, "cannot have");
    EXPECT(clm_task_fail(NULL, "x"), CLM_NULL_POINTER, "task is null");
    EXPECT(clm_finalize(0), CLM_BAD_CALL, "a task cannot end the runtime");
    EXPECT(clm_serve(&status), CLM_BAD_CALL, "a task cannot end the runtime");
    CHECK(clm_task_arg_count(NULL) == 0 && clm_task_arg_count(task) == 1);
    return CLM_OK;
}

/* Status of a call of `name` with one argument of `len` zero bytes. */
static int32_t call(const char *name, size_t len, const clm_options *options)
{
    static const char zeros[64];
    clm_arg arg = CLM_BYTES(zeros, len);
    clm_ref *ref;
    clm_view view;
    EXPECT(clm_spawn(name, &arg, 1, options, &ref), CLM_OK, "");
    int32_t status = clm_get(ref, 60000, &view);
    CHECK(status == CLM_OK || (view.data == NULL && view.len == 0 && view.owner == NULL));
    clm_view_release(&view);
    clm_ref_release(ref);
    return status;
}

static void before_init(void)
{
    clm_ref *ref = (clm_ref *)1;
    clm_view view = { 0 };
    bool ready;
    int32_t status = 0;
    CHECK(strcmp(clm_last_error(), "") == 0);
    CHECK(clm_rank() == -1 && clm_size() == -1);
    EXPECT(clm_spawn("echo", NULL, 0, NULL, &ref), CLM_NOT_RUNNING, "call clm_init first");
    CHECK(ref == NULL);
    EXPECT(clm_put("x", 1, &ref), CLM_NOT_RUNNING, "call clm_init first");
    EXPECT(clm_wait(NULL, 0, 0, 0, &ready), CLM_NOT_RUNNING, "call clm_init first");
    EXPECT(clm_finalize(0), CLM_NOT_RUNNING, "call clm_init first");
    EXPECT(clm_serve(&status), CLM_NOT_RUNNING, "call clm_init first");
    CHECK(status == 1);
    clm_ref_release(NULL);
    clm_view_release(NULL);
    clm_view_release(&view);

    EXPECT(clm_register(NULL, echo, NULL), CLM_NULL_POINTER, "name is null");
    EXPECT(clm_register("echo", NULL, NULL), CLM_NULL_POINTER, "body is null");
    EXPECT(clm_register("", echo, NULL), CLM_BAD_CALL, "1 to 256 bytes");
    EXPECT(clm_register("\xff", echo, NULL), CLM_BAD_ARGUMENT, "no UTF-8");
    EXPECT(clm_register("echo", echo, &failures), CLM_OK, "");
    EXPECT(clm_register("echo", echo, &failures), CLM_BAD_CALL, "registered already");
    EXPECT(clm_register("silent", silent, NULL), CLM_OK, "");
    EXPECT(clm_register("returns_7", returns_7, NULL), CLM_OK, "");
    EXPECT(clm_register("clumsy", clumsy, NULL), CLM_OK, "");
}

static void calls(void)
{
    clm_ref *ref = NULL;
    clm_arg nowhere = CLM_BYTES(NULL, 1), endless = CLM_BYTES("x", (size_t)-1);
    EXPECT(clm_spawn(NULL, NULL, 0, NULL, &ref), CLM_NULL_POINTER, "name is null");
    EXPECT(clm_spawn("echo", NULL, 1, NULL, &ref), CLM_NULL_POINTER, "args is null");
    EXPECT(clm_spawn("echo", NULL, 0, NULL, NULL), CLM_NULL_POINTER, "result is null");
    EXPECT(clm_spawn("echo", &nowhere, 1, NULL, &ref), CLM_NULL_POINTER, "args[0].data is null");
    EXPECT(clm_spawn("echo", &endless, 1, NULL, &ref), CLM_BAD_ARGUMENT, "args[0].data cannot have");
    CHECK(ref == NULL);
    EXPECT(call("nobody", 8, NULL), CLM_UNKNOWN_TASK, "there is no task `nobody`, only ");
    EXPECT(call("silent", 8, NULL), CLM_OK, "");
    EXPECT(call("clumsy", 8, NULL), CLM_OK, "");
    EXPECT(call("returns_7", 8, NULL), CLM_FAILED, "the task returned status 7 (in task `returns_7` on rank 0)");
    EXPECT(clm_spawn("echo", NULL, 0, NULL, &ref), CLM_OK, "");
    clm_view view;
    EXPECT(clm_get(ref, -1, &view), CLM_FAILED, "argument 0 does not exist");
    clm_ref_release(ref);
}

static void options(void)
{
    clm_options bad = CLM_OPTIONS_INIT;
    clm_ref *ref;
    bad.rank = clm_size();
    EXPECT(call("echo", 8, &bad), CLM_BAD_CALL, "rank");
    bad.rank = -2;
    EXPECT(clm_spawn("silent", NULL, 0, &bad, &ref), CLM_BAD_CALL, "-1 is any");
    bad.rank = 0;
    bad.spread = 1;
    EXPECT(clm_spawn("silent", NULL, 0, &bad, &ref), CLM_BAD_CALL, "rank 0 and for spread");
    bad.rank = -1;
    bad.size = 4;
    EXPECT(clm_spawn("silent", NULL, 0, &bad, &ref), CLM_BAD_CALL, "CLM_OPTIONS_INIT");

    struct {
        clm_options known;
        int64_t unknown;
    } newer = { CLM_OPTIONS_INIT, 0 };
    newer.known.size = sizeof newer;
    EXPECT(call("echo", 8, &newer.known), CLM_OK, "");
    newer.unknown = 1;
    EXPECT(clm_spawn("silent", NULL, 0, &newer.known, &ref), CLM_BAD_CALL, "does not have");

    clm_options named = CLM_OPTIONS_INIT;
    named.name = "Friday";
    EXPECT(call("returns_7", 8, &named), CLM_FAILED, "in task `Friday` on rank 0");
    named.name = "\xff";
    EXPECT(clm_spawn("silent", NULL, 0, &named, &ref), CLM_BAD_ARGUMENT, "options.name is no UTF-8");
}

static void values(void)
{
    enum { LEN = 1 << 20 };
    clm_ref *ref, *copy;
    clm_view view, second;
    bool ready[2] = { true, true };
    EXPECT(clm_put("x", 1, NULL), CLM_NULL_POINTER, "result is null");
    EXPECT(clm_put(NULL, 1, &ref), CLM_NULL_POINTER, "data is null");
    EXPECT(clm_get(NULL, -1, &view), CLM_NULL_POINTER, "ref is null");
    CHECK(view.data == NULL && view.len == 0);
    char *bytes = malloc(LEN);
    if (!bytes)
        abort();
    memset(bytes, 42, LEN);
    EXPECT(clm_put(bytes, LEN, &ref), CLM_OK, "");
    free(bytes);
    EXPECT(clm_get(ref, -1, NULL), CLM_NULL_POINTER, "view is null");
    EXPECT(clm_get(ref, -2, &view), CLM_BAD_ARGUMENT, "-1 is without a limit");
    EXPECT(clm_ref_clone(NULL, &copy), CLM_NULL_POINTER, "ref is null");
    EXPECT(clm_ref_clone(ref, NULL), CLM_NULL_POINTER, "copy is null");
    EXPECT(clm_ref_clone(ref, &copy), CLM_OK, "");

    /* Two views of one object; then everything is released the wrong way round. */
    EXPECT(clm_get(ref, INT64_MAX, &view), CLM_OK, "");
    EXPECT(clm_get(copy, 0, &second), CLM_OK, "");
    CHECK(view.data == second.data && view.len == LEN && (uintptr_t)view.data % 16 == 0);
    clm_arg arg = CLM_REF(copy);
    clm_ref *echoed, *refs[2];
    EXPECT(clm_spawn("echo", &arg, 1, NULL, &echoed), CLM_OK, "");
    refs[0] = echoed;
    refs[1] = NULL;
    const clm_ref *const *both = (const clm_ref *const *)refs;
    EXPECT(clm_wait(both, 2, 1, -1, ready), CLM_NULL_POINTER, "refs[1] is null");
    EXPECT(clm_wait(both, 1, 2, -1, ready), CLM_BAD_CALL, "can never be ready");
    EXPECT(clm_wait(both, 1, 1, -1, NULL), CLM_NULL_POINTER, "ready is null");
    EXPECT(clm_wait(NULL, 1, 1, -1, ready), CLM_NULL_POINTER, "refs is null");
    EXPECT(clm_wait(NULL, 0, 0, -1, NULL), CLM_OK, "");
    EXPECT(clm_wait(both, 1, 1, -1, ready), CLM_OK, "");
    CHECK(ready[0]);
    clm_ref_release(ref);
    clm_ref_release(copy);
    clm_view_release(&view);
    clm_view_release(&view);
    CHECK(second.len == LEN && ((const char *)second.data)[LEN - 1] == 42);
    EXPECT(clm_get(echoed, -1, &view), CLM_OK, "");
    clm_ref_release(echoed);
    CHECK(view.len == LEN && memcmp(view.data, second.data, LEN) == 0);
    clm_view_release(&second);
    CHECK(((const char *)view.data)[0] == 42);
    clm_view_release(&view);
}

int main(void)
{
    int32_t status;
    clm_ref *ref;
    clm_view view, none;
    before_init();
    EXPECT(clm_init(), CLM_OK, "");
    EXPECT(clm_init(), CLM_BAD_CALL, "clm_init was called before");
    if (clm_rank() != 0) {
        EXPECT(clm_finalize(0), CLM_BAD_CALL, "call clm_serve");
        EXPECT(clm_serve(NULL), CLM_NULL_POINTER, "exit_status is null");
        EXPECT(clm_serve(&status), CLM_OK, "");
        CHECK(status == 3);
        return failures == 0 ? status : 1;
    }
    EXPECT(clm_register("late", silent, NULL), CLM_BAD_CALL, "comes too late");
    EXPECT(clm_serve(&status), CLM_BAD_CALL, "rank 0 is the driver");
    calls();
    options();
    values();
    CHECK(strcmp(clm_status_text(99), "unknown status") == 0);

    /* A ref and a view that outlive the runtime. */
    EXPECT(clm_put("late", 5, &ref), CLM_OK, "");
    EXPECT(clm_get(ref, -1, &view), CLM_OK, "");
    EXPECT(clm_finalize(3), CLM_OK, "");
    EXPECT(clm_finalize(3), CLM_NOT_RUNNING, "clm_finalize last");
    EXPECT(clm_init(), CLM_BAD_CALL, "once per process");
    EXPECT(clm_get(ref, -1, &none), CLM_NOT_RUNNING, "not running");
    CHECK(clm_rank() == -1 && strcmp(view.data, "late") == 0);
    clm_ref_release(ref);
    clm_view_release(&view);
    if (failures == 0)
        printf("ok\n");
    return failures == 0 ? 3 : 1;
}
