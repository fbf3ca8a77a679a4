// SPDX-License-Identifier: Apache-2.0
/* A client on MariaDB's C library, for what text-protocol clients cannot do: mariadb_client HOST PORT [FEATURE...]
 *
 * Waits for a line, runs its features, and tells each call as a JSON line, like the Python clients (journal.py).
 * HOST that begins with a slash is a Unix socket. https://mariadb.com/kb/en/mariadb-connector-c-api-functions/ */
#include <mariadb/mysql.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define TOLD_MAX 2048 /* of a text; the server's history keeps no more either */

static const char *host, *feature;
static unsigned int port;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s: %s\n", feature, what, why);
    exit(1);
}

static int local_port(MYSQL *m)
{
    struct sockaddr_storage own;
    socklen_t size = sizeof own;
    if (getsockname((int)mysql_get_socket(m), (struct sockaddr *)&own, &size) < 0 || own.ss_family != AF_INET)
        return 0;
    return ntohs(((struct sockaddr_in *)&own)->sin_port);
}

static void print_text(const char *text)
{
    for (size_t i = 0; text[i] && i < TOLD_MAX; i++) {
        if (text[i] == '"' || text[i] == '\\')
            putchar('\\');
        putchar(text[i]);
    }
}

/* The call ends now; an error that is not `wanted` ends everything. */
static void tell(MYSQL *m, const char *text, uint64_t start_ns, uint64_t rows, unsigned int error, unsigned int wanted)
{
    uint64_t end_ns = now_ns();
    printf("{\"feature\": \"%s\", \"text\": \"", feature);
    print_text(text);
    printf("\", \"start_ns\": %lu, \"end_ns\": %lu, \"rows\": %lu, \"error\": \"", start_ns, end_ns, rows);
    if (error)
        printf("%u", error);
    printf("\", \"port\": %d}\n", local_port(m));
    if (error != wanted)
        fail(text, error ? mysql_error(m) : "no error");
}

static MYSQL *connected(unsigned long flags, bool compressed)
{
    MYSQL *m = mysql_init(NULL);
    if (compressed)
        mysql_options(m, MYSQL_OPT_COMPRESS, NULL);
    bool local = host[0] == '/';
    if (!mysql_real_connect(m, local ? NULL : host, "tester", NULL, "test", port, local ? host : NULL, flags))
        fail("connect", mysql_error(m));
    return m;
}

static uint64_t taken_rows(MYSQL *m)
{
    MYSQL_RES *result = mysql_store_result(m);
    uint64_t rows = result ? mysql_num_rows(result) : 0;
    mysql_free_result(result);
    return rows;
}

static void query(MYSQL *m, const char *text, unsigned int wanted)
{
    uint64_t start_ns = now_ns(), rows = 0;
    if (mysql_real_query(m, text, strlen(text)) == 0) {
        rows = taken_rows(m);
        while (mysql_next_result(m) == 0)
            rows += taken_rows(m);
    }
    tell(m, text, start_ns, rows, mysql_errno(m), wanted);
}

static MYSQL_STMT *prepared(MYSQL *m, const char *text, unsigned int wanted)
{
    MYSQL_STMT *statement = mysql_stmt_init(m);
    uint64_t start_ns = now_ns();
    mysql_stmt_prepare(statement, text, strlen(text));
    tell(m, text, start_ns, 0, mysql_stmt_errno(statement), wanted);
    return statement;
}

static void execute(MYSQL *m, MYSQL_STMT *statement, const char *text, unsigned int wanted)
{
    uint64_t start_ns = now_ns(), rows = 0;
    if (mysql_stmt_execute(statement) == 0)
        do {
            mysql_stmt_store_result(statement);
            rows += mysql_stmt_num_rows(statement);
            mysql_stmt_free_result(statement);
        } while (mysql_stmt_next_result(statement) == 0);
    tell(m, text, start_ns, rows, mysql_stmt_errno(statement), wanted);
}

static MYSQL_BIND text_parameter(const char *text)
{
    return (MYSQL_BIND){.buffer_type = MYSQL_TYPE_STRING, .buffer = (void *)text, .buffer_length = strlen(text)};
}

static void prepare(void)
{
    MYSQL *m = connected(0, false);
    const char *text = "SELECT ?, ?, ?, ? FROM seq_1_to_7";
    MYSQL_STMT *statement = prepared(m, text, 0);
    long long number = 1;
    double real = 0.5;
    MYSQL_BIND binds[4] = {{.buffer_type = MYSQL_TYPE_LONGLONG, .buffer = &number},
                           text_parameter("it's\nnot 'one'"),
                           {.buffer_type = MYSQL_TYPE_DOUBLE, .buffer = &real},
                           {.buffer_type = MYSQL_TYPE_NULL}};
    mysql_stmt_bind_param(statement, binds);
    for (; number <= 3; number++)
        execute(m, statement, text, 0);
    mysql_stmt_reset(statement);
    execute(m, statement, text, 0);
    const char *other_text = "SELECT 'without parameters'";
    MYSQL_STMT *other = prepared(m, other_text, 0);
    execute(m, other, other_text, 0);
    execute(m, statement, text, 0);
    mysql_stmt_close(statement);
    execute(m, other, other_text, 0);
    mysql_stmt_close(other);
    mysql_close(m);
}

static void prepare_error(void)
{
    MYSQL *m = connected(0, false);
    mysql_stmt_close(prepared(m, "SELEC ?", 1064));
    mysql_stmt_close(prepared(m, "SELECT * FROM no_such_table WHERE id = ?", 1146));
    query(m, "CREATE TEMPORARY TABLE prepare_error (id INT PRIMARY KEY)", 0);
    const char *text = "INSERT INTO prepare_error VALUES (?)";
    MYSQL_STMT *statement = prepared(m, text, 0);
    int id = 1;
    MYSQL_BIND bind = {.buffer_type = MYSQL_TYPE_LONG, .buffer = &id};
    mysql_stmt_bind_param(statement, &bind);
    execute(m, statement, text, 0);
    execute(m, statement, text, 1062);
    id = 2;
    execute(m, statement, text, 0);
    mysql_stmt_close(statement);
    mysql_close(m);
}

/* The server keeps the result; rows come by COM_STMT_FETCH, ten at a time. */
static void cursor(void)
{
    MYSQL *m = connected(0, false);
    const char *text = "SELECT seq FROM seq_1_to_25";
    MYSQL_STMT *statement = prepared(m, text, 0);
    unsigned long type = CURSOR_TYPE_READ_ONLY, batch = 10;
    mysql_stmt_attr_set(statement, STMT_ATTR_CURSOR_TYPE, &type);
    mysql_stmt_attr_set(statement, STMT_ATTR_PREFETCH_ROWS, &batch);
    uint64_t start_ns = now_ns(), rows = 0;
    mysql_stmt_execute(statement);
    tell(m, text, start_ns, 0, mysql_stmt_errno(statement), 0);
    while (mysql_stmt_fetch(statement) == 0)
        rows++;
    if (rows != 25)
        fail(text, "not 25 rows");
    mysql_stmt_close(statement);
    mysql_close(m);
}

/* A parameter that is sent before the execution, in pieces that nobody answers. */
static void long_data(void)
{
    MYSQL *m = connected(0, false);
    const char *text = "SELECT LENGTH(?)";
    MYSQL_STMT *statement = prepared(m, text, 0);
    MYSQL_BIND bind = {.buffer_type = MYSQL_TYPE_STRING};
    mysql_stmt_bind_param(statement, &bind);
    char piece[1000];
    memset(piece, 'p', sizeof piece);
    for (int i = 0; i < 5; i++)
        mysql_stmt_send_long_data(statement, 0, piece, sizeof piece);
    execute(m, statement, text, 0);
    mysql_stmt_close(statement);
    mysql_close(m);
}

/* COM_STMT_BULK_EXECUTE, which only MariaDB has. */
static void bulk(void)
{
    MYSQL *m = connected(0, false);
    query(m, "CREATE TEMPORARY TABLE bulk (id INT)", 0);
    const char *text = "INSERT INTO bulk VALUES (?)";
    MYSQL_STMT *statement = prepared(m, text, 0);
    int ids[] = {1, 2, 3, 4, 5};
    unsigned int count = 5;
    mysql_stmt_attr_set(statement, STMT_ATTR_ARRAY_SIZE, &count);
    MYSQL_BIND bind = {.buffer_type = MYSQL_TYPE_LONG, .buffer = ids};
    mysql_stmt_bind_param(statement, &bind);
    uint64_t start_ns = now_ns();
    mysql_stmt_execute(statement);
    tell(m, text, start_ns, 0, mysql_stmt_errno(statement), 0);
    mysql_stmt_close(statement);
    query(m, "SELECT * FROM bulk", 0);
    mysql_close(m);
}

static void procedure(void)
{
    MYSQL *m = connected(CLIENT_MULTI_STATEMENTS, false);
    query(m, "CREATE OR REPLACE PROCEDURE two(a INT) BEGIN SELECT a; SELECT a UNION SELECT a + 1; END", 0);
    query(m, "CALL two(3)", 0);
    const char *text = "CALL two(?)";
    MYSQL_STMT *statement = prepared(m, text, 0);
    int number = 4;
    MYSQL_BIND bind = {.buffer_type = MYSQL_TYPE_LONG, .buffer = &number};
    mysql_stmt_bind_param(statement, &bind);
    execute(m, statement, text, 0);
    mysql_stmt_close(statement);
    mysql_close(m);
}

static void compressed(void)
{
    MYSQL *m = connected(0, true);
    query(m, "SELECT 1", 0);
    query(m, "SELECT seq, REPEAT('abc', 300) FROM seq_1_to_100", 0);
    query(m, "SELECT no_such_column", 1054);
    const char *text = "SELECT CONCAT(?, 'x')";
    MYSQL_STMT *statement = prepared(m, text, 0);
    MYSQL_BIND bind = text_parameter("parameter");
    mysql_stmt_bind_param(statement, &bind);
    execute(m, statement, text, 0);
    mysql_stmt_close(statement);
    mysql_close(m);
}

/* Everything short that is not a query. */
static void commands(void)
{
    MYSQL *m = connected(0, false);
    mysql_ping(m);
    if (!mysql_stat(m))
        fail("statistics", mysql_error(m));
    mysql_select_db(m, "second");
    query(m, "SELECT DATABASE()", 0);
    mysql_set_server_option(m, MYSQL_OPTION_MULTI_STATEMENTS_ON);
    mysql_select_db(m, "no_such_database");
    query(m, "SET @kept = 1", 0);
    mysql_reset_connection(m);
    query(m, "SELECT @kept", 0);
    mysql_free_result(mysql_list_fields(m, "no_such_table", NULL));
    mysql_close(m);
}

static void change_user(void)
{
    MYSQL *m = connected(0, false);
    if (mysql_change_user(m, "other", "throwaway", "test"))
        fail("change user", mysql_error(m));
    query(m, "SELECT CURRENT_USER()", 0);
    if (mysql_change_user(m, "other", "wrong", "test") == 0)
        fail("change user", "a wrong password is good enough");
    mysql_close(m);
}

/* A query, and a result, of more than the 16 MiB - 1 that one packet holds. */
static void packet(void)
{
    MYSQL *m = connected(0, false);
    const char begin[] = "SELECT '", end[] = "' AS more_than_a_packet";
    size_t letters = 17u << 20;
    char *text = malloc(letters + sizeof begin + sizeof end);
    if (!text)
        fail("malloc", "no memory");
    strcpy(text, begin);
    memset(text + strlen(begin), 'q', letters);
    strcpy(text + strlen(begin) + letters, end);
    query(m, text, 0);
    free(text);
    query(m, "SELECT 'after'", 0);
    mysql_close(m);
}

static const struct {
    const char *name;
    void (*run)(void);
} features[] = {
    {"prepare", prepare},     {"prepare_error", prepare_error}, {"cursor", cursor},     {"long_data", long_data},
    {"bulk", bulk},           {"procedure", procedure},         {"commands", commands}, {"compressed", compressed},
    {"change_user", change_user}, {"packet", packet},
};

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    host = argv[1];
    port = (unsigned int)atoi(argv[2]);
    size_t count = sizeof features / sizeof *features;
    if (getchar() == EOF)
        return 1;
    for (int i = 3; i < argc; i++) {
        bool known = false;
        for (size_t f = 0; f < count; f++)
            known |= strcmp(argv[i], features[f].name) == 0;
        feature = argv[i];
        if (!known)
            fail("features", "there is none of this name");
    }
    for (size_t f = 0; f < count; f++) {
        bool chosen = argc == 3;
        for (int i = 3; i < argc; i++)
            chosen |= strcmp(argv[i], features[f].name) == 0;
        feature = features[f].name;
        if (chosen)
            features[f].run();
    }
    return 0;
}
