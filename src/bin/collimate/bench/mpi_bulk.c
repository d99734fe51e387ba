/* One object from rank 1 to rank 0, again and again, each at rank 0's request:
 * what `collimate bench fabric` compares a read with. Prints nanoseconds, one
 * line for each. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    int bytes = argc > 1 ? atoi(argv[1]) : 0;
    int rounds = argc > 2 ? atoi(argv[2]) : 0;
    char *buffer = malloc(bytes > 0 ? bytes : 1);
    if (!buffer || bytes <= 0)
        MPI_Abort(MPI_COMM_WORLD, 1);
    memset(buffer, rank + 1, bytes);
    char request = 0;
    for (int i = 0; i < rounds; i++) {
        if (rank == 0) {
            double start = MPI_Wtime();
            MPI_Send(&request, 1, MPI_CHAR, 1, 1, MPI_COMM_WORLD);
            MPI_Recv(buffer, bytes, MPI_CHAR, 1, 2, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            printf("%.0f\n", (MPI_Wtime() - start) * 1e9);
        } else {
            MPI_Recv(&request, 1, MPI_CHAR, 0, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Send(buffer, bytes, MPI_CHAR, 0, 2, MPI_COMM_WORLD);
        }
    }
    free(buffer);
    MPI_Finalize();
    return 0;
}
