/*
 * Sums a vector on all ranks: one put, one task per rank and part, a tree of
 * results, and what happens when a task fails. Needs the header and the
 * library:
 *
 *     cargo build --release -p collimate -p collimate-c
 *     cc -std=c11 -Iffi/include ffi/examples/sum.c -Ltarget/release -lcollimate -o sum
 *     LD_LIBRARY_PATH=target/release target/release/collimate run -n 2 -- ./sum
 */
#include <collimate.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PARTS = 8, VALUES = 1 << 18 };

/* Ends the program when something fails that should not. */
static void must(int32_t status, const char *what)
{
    if (status != CLM_OK) {
        fprintf(stderr, "sum: %s: %s: %s\n", what, clm_status_text(status), clm_last_error());
        exit(1);
    }
}

/* Task: the sum of part `arguments[1]` of the doubles `arguments[0]`. */
static int32_t part_sum(clm_task *task, void *user_data)
{
    const void *data, *number;
    size_t len, number_len;
    uint32_t part;
    (void)user_data;
    if (clm_task_arg(task, 0, &data, &len) != CLM_OK || clm_task_arg(task, 1, &number, &number_len) != CLM_OK)
        return clm_task_fail(task, NULL);
    if (len % sizeof(double) != 0 || number_len != sizeof part)
        return clm_task_fail(task, "part_sum takes doubles and the number of a part");
    memcpy(&part, number, sizeof part);
    if (part >= PARTS)
        return clm_task_fail(task, "there is no such part");

    /* The doubles are where the driver put them: nothing is copied. */
    const double *values = data;
    size_t count = len / sizeof *values;
    double sum = 0;
    for (size_t i = count * part / PARTS; i < count * (part + 1) / PARTS; i++)
        sum += values[i];
    return clm_task_return(task, &sum, sizeof sum);
}

/* Task: the sum of its arguments, one double each. */
static int32_t add(clm_task *task, void *user_data)
{
    double sum = 0;
    (void)user_data;
    for (size_t i = 0; i < clm_task_arg_count(task); i++) {
        const void *data;
        size_t len;
        double value;
        clm_task_arg(task, i, &data, &len);
        if (len != sizeof value)
            return clm_task_fail(task, "add takes doubles");
        memcpy(&value, data, sizeof value);
        sum += value;
    }
    return clm_task_return(task, &sum, sizeof sum);
}

/* Task: the rank that it runs on. */
static int32_t whereabouts(clm_task *task, void *user_data)
{
    int32_t rank = clm_rank();
    (void)user_data;
    return clm_task_return(task, &rank, sizeof rank);
}

/* Task: part `arguments[0]` of nothing, by another task that it waits for. */
static int32_t doomed(clm_task *task, void *user_data)
{
    uint32_t part = PARTS;
    clm_arg args[] = { CLM_BYTES(NULL, 0), CLM_BYTES(&part, sizeof part) };
    clm_ref *ref;
    clm_view view;
    (void)user_data;
    if (clm_spawn("part_sum", args, 2, NULL, &ref) != CLM_OK)
        return clm_task_fail(task, NULL);
    clm_status status = clm_get(ref, -1, &view);
    clm_ref_release(ref);
    clm_view_release(&view);
    return status == CLM_OK ? status : clm_task_fail(task, NULL);
}

/* The sum of 0, 1, ... VALUES - 1, by tasks. */
static double distributed_sum(void)
{
    double *values = malloc(VALUES * sizeof *values);
    if (!values)
        abort();
    for (size_t i = 0; i < VALUES; i++)
        values[i] = (double)i;
    clm_ref *vector;
    must(clm_put(values, VALUES * sizeof *values, &vector), "put");
    free(values);

    clm_options everywhere = CLM_OPTIONS_INIT;
    everywhere.spread = 1;
    clm_ref *sums[PARTS];
    for (uint32_t part = 0; part < PARTS; part++) {
        clm_arg args[] = { CLM_REF(vector), CLM_BYTES(&part, sizeof part) };
        must(clm_spawn("part_sum", args, 2, &everywhere, &sums[part]), "spawn");
    }
    /* The refs may go before the tasks have run. */
    clm_ref_release(vector);

    bool ready[PARTS];
    must(clm_wait((const clm_ref *const *)sums, PARTS, 1, 60000, ready), "wait");

    clm_arg args[PARTS];
    for (uint32_t part = 0; part < PARTS; part++)
        args[part] = (clm_arg)CLM_REF(sums[part]);
    clm_ref *all;
    must(clm_spawn("add", args, PARTS, NULL, &all), "spawn");
    for (uint32_t part = 0; part < PARTS; part++)
        clm_ref_release(sums[part]);

    clm_view view;
    must(clm_get(all, 60000, &view), "get");
    clm_ref_release(all);
    double sum = *(const double *)view.data;
    clm_view_release(&view);
    return sum;
}

/* How many ranks answer for themselves. */
static int32_t ranks_reached(void)
{
    int32_t reached = 0;
    for (int32_t rank = 0; rank < clm_size(); rank++) {
        clm_options there = CLM_OPTIONS_INIT;
        there.rank = rank;
        there.name = "scout";
        clm_ref *ref;
        clm_view view;
        must(clm_spawn("whereabouts", NULL, 0, &there, &ref), "spawn");
        must(clm_get(ref, 60000, &view), "get");
        reached += view.len == sizeof rank && memcmp(view.data, &rank, sizeof rank) == 0;
        clm_view_release(&view);
        clm_ref_release(ref);
    }
    return reached;
}

/* A failure is a value: the driver reads it and goes on. */
static void show_failure(void)
{
    clm_options last = CLM_OPTIONS_INIT;
    last.rank = clm_size() - 1;
    clm_ref *ref;
    clm_view view;
    must(clm_spawn("doomed", NULL, 0, &last, &ref), "spawn");
    int32_t status = clm_get(ref, 60000, &view);
    clm_ref_release(ref);
    printf("doomed: %s: %s\n", clm_status_text(status), clm_last_error());
    if (status != CLM_FAILED || view.data != NULL)
        exit(1);
}

int main(void)
{
    must(clm_register("part_sum", part_sum, NULL), "register");
    must(clm_register("add", add, NULL), "register");
    must(clm_register("whereabouts", whereabouts, NULL), "register");
    must(clm_register("doomed", doomed, NULL), "register");
    must(clm_init(), "init");
    if (clm_rank() != 0) {
        int32_t status;
        if (clm_serve(&status) != CLM_OK)
            fprintf(stderr, "sum: %s\n", clm_last_error());
        return status;
    }
    double expected = (double)VALUES * (VALUES - 1) / 2;
    double sum = distributed_sum();
    printf("sum %.0f of %.0f on %d of %d ranks\n", sum, expected, (int)ranks_reached(), (int)clm_size());
    show_failure();
    must(clm_finalize(0), "finalize");
    return sum == expected ? 0 : 1;
}
